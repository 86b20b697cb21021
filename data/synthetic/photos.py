"""Draws photos of synthetic people before alignment: larger than the face, which is somewhere in them, turned and
scaled.

A `Detection` is one face in one photo with the output of a face detector. A medium is a list of detections: one for a
still, several for the frames of a video. A template, all that is known of a person at once, is a list of media.
"""

from dataclasses import dataclass, replace
from typing import Self

import cv2
import numpy as np
from numpy.random import Generator

from data.synthetic.build import encode
from data.synthetic.canvas import SIZE, TEMPLATE
from data.synthetic.people import Person, Shot
from data.synthetic.procedural import draw

MIN_SIDE, MAX_SIDE = 150, 320  # sides of a photo in pixels
SCALES = (1, 2)  # range of the face's scale: twice the aligned crop, turned by MAX_ROLL, just fits MAX_SIDE
MAX_ROLL = np.radians(25)
CROP_CENTRE = complex((SIZE - 1) / 2, (SIZE - 1) / 2)
BORDER = 160  # pixels that are synthesised on each side of the aligned crop
SHOULDERS = np.array(
    [(34, 119), (78, 119), (110, 128), (140, 160), (150, 280), (-38, 280), (-28, 160), (2, 128)], np.int32
)


@dataclass(frozen=True)
class View:
    """The position of a face in a photo, and how degraded the photo is."""

    scale: float  # pixels of the photo per pixel of the aligned crop
    roll: float  # in radians, clockwise
    margin: tuple[float, float]  # space around the face, horizontal and vertical, from 0 (minimal) to 1 (maximal)
    position: tuple[float, float]  # of the face in that space, from 0 (left or top) to 1 (right or bottom)
    degradation: float  # from 0 (a sharp photo) to 1 (a tiny face, enlarged)

    @classmethod
    def sample(cls, rng: Generator, degradation: float) -> Self:
        """Samples a random view of the given degradation."""
        x, y, across, down = rng.uniform(0, 1, 4)
        return cls(rng.uniform(*SCALES), rng.uniform(-MAX_ROLL, MAX_ROLL), (across, down), (x, y), degradation)

    def jittered(self, rng: Generator) -> Self:
        """Returns the view a moment later, for a hand-held camera and a moving head."""
        scale, roll, x, y, degradation = rng.normal(
            (self.scale, self.roll, *self.position, self.degradation), (0.03, 0.03, 0.04, 0.04, 0.05)
        )
        return replace(
            self,
            scale=float(np.clip(scale, *SCALES)),
            roll=float(np.clip(roll, -MAX_ROLL, MAX_ROLL)),
            position=(float(np.clip(x, 0, 1)), float(np.clip(y, 0, 1))),
            degradation=float(np.clip(degradation, 0, 1)),
        )

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the photo in pixels, large enough for the complete turned crop."""
        low = max(MIN_SIDE, self._extent)
        high = min(MAX_SIDE, 1.6 * low)
        across, down = self.margin
        return int(np.ceil(low + across * (high - low))), int(np.ceil(low + down * (high - low)))

    @property
    def _extent(self) -> float:
        """Side of the upright square around the turned crop, in pixels."""
        return SIZE * self.scale * (np.cos(self.roll) + abs(np.sin(self.roll)))

    def to_photo(self, points: np.ndarray) -> np.ndarray:
        """Maps points of the aligned crop to points of the photo, both as complex numbers x + iy."""
        half = (self._extent - 1) / 2
        x, y = (half + part * (side - self._extent) for part, side in zip(self.position, self.size, strict=True))
        return self.scale * np.exp(1j * self.roll) * (points - CROP_CENTRE) + complex(x, y)


@dataclass(frozen=True)
class Detection:
    """A face in a photo, with the landmarks and score of a simulated face detector."""

    shot: Shot
    view: View
    landmarks: np.ndarray  # (5,) x + iy in the photo, in the order of TEMPLATE
    score: float  # confidence of the detector, from 0.5 to 1

    @classmethod
    def sample(cls, rng: Generator, shot: Shot, view: View) -> Self:
        """Detects the face. The landmark error grows, and the score falls, with the degradation of the photo."""
        error = (0.5 + view.degradation) * (rng.standard_normal(5) + 1j * rng.standard_normal(5))
        doubt = 0.005 + 0.4 * view.degradation + 0.04 * shot.blur + 0.004 * shot.noise + abs(rng.normal(0, 0.01))
        return cls(shot, view, view.to_photo(TEMPLATE + error), max(0.5, 1 - doubt))


Medium = list[Detection]
Template = list[Medium]


def sample_template(rng: Generator) -> Template:
    """Samples a random template: one still, or two to six stills and videos."""
    if rng.random() < 0.15:
        return [_sample_still(rng)]
    return [_sample_video(rng) if rng.random() < 0.45 else _sample_still(rng) for _ in range(rng.integers(2, 7))]


def _sample_still(rng: Generator) -> Medium:
    return [Detection.sample(rng, Shot.sample(rng), View.sample(rng, _sample_degradation(rng, 0.05)))]


def _sample_video(rng: Generator) -> Medium:
    """Samples two to five frames of one shot. All have the shot's seed, and so the same background."""
    first, view = Shot.sample(rng), View.sample(rng, _sample_degradation(rng, 0.3))
    frames = []
    for _ in range(rng.integers(2, 6)):
        yaw, pitch, dx, dy, smile = rng.normal(0, (0.05, 0.03, 0.5, 0.5, 0.1))
        shot = replace(
            first,
            yaw=first.yaw + yaw,
            pitch=first.pitch + pitch,
            shift=(first.shift[0] + dx, first.shift[1] + dy),
            smile=float(np.clip(first.smile + smile, -1, 1)),
        )
        frames.append(Detection.sample(rng, shot, view.jittered(rng)))
    return frames


def _sample_degradation(rng: Generator, mean: float) -> float:
    """Samples a degradation from 0 to 1. One in twelve is 0.7 or more, so that detector scores are informative."""
    return rng.uniform(0.7, 1) if rng.random() < 1 / 12 else float(np.clip(rng.normal(mean, 0.15), 0, 0.7))


def render_photo(person: Person, detection: Detection) -> bytes:
    """Draws the photo, as a JPEG file."""
    view = detection.view
    face = draw(person, detection.shot)
    pixels = round(SIZE * (1 - 0.8 * view.degradation))
    if pixels < SIZE:
        tiny = cv2.resize(face, (pixels, pixels), interpolation=cv2.INTER_AREA)
        face = cv2.resize(tiny, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
    origin, step = view.to_photo(np.array([0, 1]) - complex(BORDER, BORDER))
    factor = step - origin  # a complex factor, as in `to_photo`; OpenCV needs a matrix
    matrix = np.array([[factor.real, -factor.imag, origin.real], [factor.imag, factor.real, origin.imag]])
    scene = _extend_crop(face, detection.shot)
    image = cv2.warpAffine(scene, matrix, view.size, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    return encode(".jpg", image, cv2.IMWRITE_JPEG_QUALITY, round(95 - 45 * view.degradation))


def _extend_crop(face: np.ndarray, shot: Shot) -> np.ndarray:
    """Adds BORDER blurred pixels on each side of the aligned crop: shoulders below, background elsewhere."""
    scene = cv2.copyMakeBorder(face, BORDER, BORDER, BORDER, BORDER, cv2.BORDER_REPLICATE).astype(np.float32)
    # Hair at the upper edge must not extend upwards forever: fade it into the colours at the left and right.
    wall = np.linspace(face[:6, :6].mean((0, 1)), face[:6, -6:].mean((0, 1)), len(scene))
    fade = np.clip(np.arange(BORDER, 0, -1) / 14, 0, 1)[:, None, None]
    scene[:BORDER] += fade * (wall - scene[:BORDER])
    clothes = 255 * (np.clip(np.multiply(shot.clothes, shot.exposure), 0, 255) / 255) ** shot.gamma
    cv2.fillPoly(scene, [SHOULDERS + BORDER], clothes.tolist())
    from_centre = np.abs(np.arange(len(scene)) - (len(scene) - 1) / 2)
    distance = np.maximum(from_centre, from_centre[:, None]) - SIZE / 2  # pixels outside the crop's edge
    blur_weight = np.clip(distance / 8, 0, 1)[..., None]
    scene += blur_weight * (cv2.GaussianBlur(scene, (0, 0), 4) - scene)
    return np.rint(scene).astype(np.uint8)
