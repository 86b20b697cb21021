"""Parameters of synthetic faces: `Person` is an identity, `Shot` what changes between photos of a person.

Lengths are in pixels of the 112×112 crop, for a face seen from the front, relative to the middle of the face: x to the
right, y down. Angles are in radians, colours RGB from 0 to 255.
"""

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.random import Generator

RGB = tuple[float, float, float]

SKIN = np.array([(242, 208, 184), (228, 184, 150), (202, 152, 116), (160, 112, 82), (116, 78, 58)], float)
HAIR = np.array(
    [(150, 148, 146), (34, 28, 28), (62, 42, 32), (98, 66, 44), (150, 104, 62), (196, 160, 104), (150, 74, 44)], float
)
IRIS = np.array([(70, 44, 30), (104, 70, 42), (92, 104, 70), (84, 122, 160), (110, 120, 128)])


def _normal(rng: Generator, mean: float, std: float) -> float:
    """Samples a normal deviate, clipped at two standard deviations so that nobody is a caricature."""
    return mean + std * float(np.clip(rng.standard_normal(), -2, 2))


def _palette_colour(rng: Generator, palette: np.ndarray, jitter: float) -> RGB:
    """Samples a colour between two neighbours of a palette, with normal noise of std `jitter`."""
    position = rng.uniform(0, len(palette) - 1)
    low = palette[int(position)]
    colour = low + (position % 1) * (palette[int(position) + 1] - low) + rng.normal(0, jitter, 3)
    r, g, b = np.clip(colour, 8, 250).tolist()
    return r, g, b


@dataclass(frozen=True)
class Person:
    """An identity: everything that stays the same in all shots of a person."""

    face_width: float  # relative to the average; so are cheek and jaw
    cheek: float
    jaw: float
    chin_width: float
    chin_y: float
    ear: float  # half the height
    ear_out: float
    skin: RGB
    blush: float  # 0 to 1
    eye_x: float  # from the middle of the face to the middle of the eye
    eye_y: float
    eye_width: float  # half
    eye_open: float  # height / width
    eye_tilt: float
    iris_size: float
    iris: RGB
    brow_gap: float  # from the eye up to the brow
    brow_width: float  # half
    brow_thickness: float
    brow_tilt: float
    brow_arch: float
    nose_y: float  # of the tip
    nose_width: float  # half
    nose_bridge: float  # half width
    mouth_y: float
    mouth_width: float  # half
    lip_upper: float
    lip_lower: float
    lip_red: float
    hair: RGB
    bald: bool
    hair_volume: float
    hair_end: float  # y of the lower end at the sides
    hairline: float  # y above the middle
    recess: float  # of the hairline above the temples; negative for a fringe
    parting: float  # -1 to 1
    curl: float
    beard: float  # opacity 0 to 1
    beard_top: float  # 0 goatee to 1 up to the ears
    moustache: float  # opacity 0 to 1
    moles: tuple[tuple[float, float, float], ...]  # x, y, radius
    freckles: int  # seed of their pattern; 0 for none

    @classmethod
    def sample(cls, rng: Generator) -> Self:
        """Samples a random person."""
        bearded, long_hair = rng.random() < 0.28, rng.random() < 0.45
        hair_end = rng.uniform(-2, 60) if long_hair and not bearded else _normal(rng, -18, 4)
        fringe = rng.random() < 0.25
        moles = [(rng.uniform(-28, 28), rng.uniform(-6, 32), rng.uniform(0.8, 1.7)) for _ in range(rng.poisson(0.6))]
        return cls(
            face_width=_normal(rng, 1, 0.06),
            cheek=_normal(rng, 1, 0.05),
            jaw=_normal(rng, 1, 0.09),
            chin_width=_normal(rng, 14, 3),
            chin_y=_normal(rng, 37, 3.2),
            ear=_normal(rng, 9, 1.5),
            ear_out=_normal(rng, 4, 1.6),
            skin=_palette_colour(rng, SKIN, 4),
            blush=rng.uniform(0.1, 0.5),
            eye_x=_normal(rng, 17.6, 1.5),
            eye_y=_normal(rng, -20, 1.2),
            eye_width=_normal(rng, 8, 0.9),
            eye_open=_normal(rng, 0.52, 0.09),
            eye_tilt=_normal(rng, 0.03, 0.1),
            iris_size=_normal(rng, 3.9, 0.35),
            iris=_palette_colour(rng, IRIS, 6),
            brow_gap=_normal(rng, 10.5, 1.7),
            brow_width=_normal(rng, 10.5, 1.2),
            brow_thickness=_normal(rng, 2.9, 0.9),
            brow_tilt=_normal(rng, -0.06, 0.1),
            brow_arch=_normal(rng, 2.2, 1.2),
            nose_y=_normal(rng, 1.5, 2.6),
            nose_width=_normal(rng, 8.6, 1.6),
            nose_bridge=_normal(rng, 3.2, 0.7),
            mouth_y=_normal(rng, 20, 1.6),
            mouth_width=_normal(rng, 14, 1.8),
            lip_upper=_normal(rng, 3.1, 0.95),
            lip_lower=_normal(rng, 4.4, 1.1),
            lip_red=rng.uniform(0.15, 0.7),
            hair=_palette_colour(rng, HAIR, 5),
            bald=bool(not long_hair and rng.random() < 0.12),
            hair_volume=_normal(rng, 6, 2.4),
            hair_end=hair_end,
            hairline=_normal(rng, -50, 4),
            recess=rng.uniform(-22, -8) if fringe else _normal(rng, 4, 5),
            parting=rng.uniform(-1, 1),
            curl=max(0.0, rng.uniform(-1, 1)),
            beard=rng.uniform(0.25, 0.9) if bearded else 0.0,
            beard_top=rng.uniform(0, 1),
            moustache=rng.uniform(0, 0.9) if bearded else 0.0,
            moles=tuple(moles),
            freckles=int(rng.integers(1, 2**32)) if rng.random() < 0.15 else 0,
        )


@dataclass(frozen=True)
class Shot:
    """The nuisance parameters of one photo: pose, expression, light, camera and background."""

    yaw: float
    pitch: float
    roll: float  # remaining after alignment
    shift: tuple[float, float]
    scale: float
    smile: float  # -1 to 1
    mouth_open: float  # 0 to 1
    brow_raise: float
    eyelid: float  # 0 (shut) to 1 (normally open)
    gaze: tuple[float, float]
    light: tuple[float, float, float]  # direction to the light: x, y, z (towards the camera)
    ambient: float  # fraction of the light that has no direction
    exposure: RGB  # gain of each channel
    gamma: float
    glasses: RGB | None
    lens: float  # opacity of the glasses
    lens_size: tuple[float, float]
    background: tuple[RGB, RGB, RGB]
    clothes: RGB
    blur: float  # standard deviation in pixels
    noise: float  # standard deviation of 255
    jpeg: int  # quality of the camera's JPEG compression
    seed: int  # seed of the noise and of the shapes in the background

    @classmethod
    def sample(cls, rng: Generator) -> Self:
        """Samples random parameters of a photo."""
        angle, height = rng.uniform(0, 2 * np.pi), rng.uniform(0.5, 1.5)
        gain, warmth, tint = np.exp(_normal(rng, 0, 0.18)), _normal(rng, 0.04, 0.11), _normal(rng, 0, 0.04)
        dark = rng.random() < 0.15
        return cls(
            yaw=_normal(rng, 0, 0.26),
            pitch=_normal(rng, 0, 0.14),
            roll=_normal(rng, 0, 0.04),
            shift=(_normal(rng, 0, 1.3), _normal(rng, 0, 1.3)),
            scale=_normal(rng, 1, 0.03),
            smile=rng.uniform(-0.4, 1),
            mouth_open=max(0.0, rng.uniform(-0.8, 1)),
            brow_raise=_normal(rng, 0, 1.1),
            eyelid=0.05 if rng.random() < 0.04 else rng.uniform(0.7, 1.12),
            gaze=(_normal(rng, 0, 1.3), _normal(rng, 0, 0.6)),
            light=(np.cos(angle), 0.6 * np.sin(angle) - 0.5, height),
            ambient=rng.uniform(0.4, 0.8),
            exposure=(gain * np.exp(warmth), gain * np.exp(tint), gain * np.exp(-warmth)),
            gamma=np.exp(rng.normal(0, 0.15)),
            glasses=_muted_colour(rng, 10, 110) if rng.random() < 0.22 else None,
            lens=rng.uniform(0.5, 0.9) if dark else rng.uniform(0, 0.15),
            lens_size=(rng.uniform(10.5, 13.5), rng.uniform(7, 11)),
            background=(_muted_colour(rng), _muted_colour(rng), _muted_colour(rng)),
            clothes=_muted_colour(rng, 10, 240),
            blur=max(0.0, rng.normal(0.35, 0.45)),
            noise=rng.uniform(0, 9),
            jpeg=int(rng.integers(35, 96)),
            seed=int(rng.integers(2**32)),
        )

    def exaggerate(self, factor: float) -> Self:
        """Returns the photo with pose, exposure, directed light, blur and noise further from the mean by `factor`."""
        red, green, blue = self.exposure
        x, y = self.shift
        return replace(
            self,
            yaw=factor * self.yaw,
            pitch=factor * self.pitch,
            roll=factor * self.roll,
            shift=(factor * x, factor * y),
            scale=1 + factor * (self.scale - 1),
            ambient=max(0.0, 1 - factor * (1 - self.ambient)),
            exposure=(red**factor, green**factor, blue**factor),
            gamma=self.gamma**factor,
            blur=factor * self.blur,
            noise=factor * self.noise,
        )


def _muted_colour(rng: Generator, low: float = 25, high: float = 235) -> RGB:
    """Samples a colour near grey, with channels from `low` to `high`: rooms and streets seldom have pure colours."""
    grey = rng.uniform(low, high)
    r, g, b = (grey + rng.uniform(0.1, 0.6) * (rng.uniform(low, high, 3) - grey)).tolist()
    return r, g, b
