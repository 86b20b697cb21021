"""Photos of drawn people before alignment: larger than the face, which stands somewhere in them, turned and scaled.

A `Detection` is one face in one photo and what a detector says of it. A medium, a still or some frames of a video, is a
list of these; a template, all that is known of a person at once, is a list of media.
"""

from dataclasses import dataclass, replace
from typing import Self

import cv2
import numpy as np
from numpy.random import Generator

from data.synthetic.canvas import SIZE, TEMPLATE
from data.synthetic.people import Person, Shot
from data.synthetic.procedural import draw
from data.synthetic.build import encode

SHORTEST, LONGEST = 150, 320  # sides of a photo, in pixels
SCALES = (1, 2)  # of the face: twice the aligned crop, turned by ROLL, is just within the longest side
ROLL = np.radians(25)
MIDDLE = complex((SIZE - 1) / 2, (SIZE - 1) / 2)  # of the aligned crop
AROUND = 160  # pixels that are made up on each side of the aligned crop
SHOULDERS = np.array(
    [(34, 119), (78, 119), (110, 128), (140, 160), (150, 280), (-38, 280), (-28, 160), (2, 128)], np.int32
)


@dataclass(frozen=True)
class View:
    """Where the face is in a photo, and how much of it is lost."""

    scale: float  # pixels of the photo to one of the aligned crop
    roll: float  # in radians, clockwise
    room: tuple[float, float]  # around the face, across and down: 0 as little, 1 as much as there may be
    at: tuple[float, float]  # of the face in that room: 0 left or top, 1 right or bottom
    loss: float  # 0 for a sharp photo to 1 for a tiny face made larger

    @classmethod
    def sample(cls, rng: Generator, loss: float) -> Self:
        """Draw a view at random."""
        x, y, across, down = rng.uniform(0, 1, 4)
        return cls(rng.uniform(*SCALES), rng.uniform(-ROLL, ROLL), (across, down), (x, y), loss)

    def nearby(self, rng: Generator) -> Self:
        """The view a moment later: what a hand-held camera and a moving head make of it."""
        scale, roll, x, y, loss = rng.normal(
            (self.scale, self.roll, *self.at, self.loss), (0.03, 0.03, 0.04, 0.04, 0.05)
        )
        return replace(
            self,
            scale=float(np.clip(scale, *SCALES)),
            roll=float(np.clip(roll, -ROLL, ROLL)),
            at=(float(np.clip(x, 0, 1)), float(np.clip(y, 0, 1))),
            loss=float(np.clip(loss, 0, 1)),
        )

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the photo: the whole turned crop is in it."""
        low = max(SHORTEST, self._extent)
        high = min(LONGEST, 1.6 * low)
        across, down = self.room
        return int(np.ceil(low + across * (high - low))), int(np.ceil(low + down * (high - low)))

    @property
    def _extent(self) -> float:
        """Width, and height, of the upright square around the turned crop."""
        return SIZE * self.scale * (np.cos(self.roll) + abs(np.sin(self.roll)))

    def place(self, points: np.ndarray) -> np.ndarray:
        """Points of the aligned crop, as x + iy, to points of the photo."""
        half = (self._extent - 1) / 2
        x, y = (half + share * (side - self._extent) for share, side in zip(self.at, self.size, strict=True))
        return self.scale * np.exp(1j * self.roll) * (points - MIDDLE) + complex(x, y)


@dataclass(frozen=True)
class Detection:
    """A face in a photo, and what a detector says of it."""

    shot: Shot
    view: View
    landmarks: np.ndarray  # (5,) x + iy in the photo, in the order of TEMPLATE
    score: float  # from 0.5 to 1: how sure the detector is

    @classmethod
    def sample(cls, rng: Generator, shot: Shot, view: View) -> Self:
        """Detect the face: the worse it can be seen, the less exactly and the less surely."""
        error = (0.5 + view.loss) * (rng.standard_normal(5) + 1j * rng.standard_normal(5))
        doubt = 0.005 + 0.4 * view.loss + 0.04 * shot.blur + 0.004 * shot.noise + abs(rng.normal(0, 0.01))
        return cls(shot, view, view.place(TEMPLATE + error), max(0.5, 1 - doubt))


Medium = list[Detection]
Template = list[Medium]


def sample_template(rng: Generator) -> Template:
    """Draw a template at random: one still, or two to six stills and videos."""
    if rng.random() < 0.15:
        return [_still(rng)]
    return [_video(rng) if rng.random() < 0.45 else _still(rng) for _ in range(rng.integers(2, 7))]


def _still(rng: Generator) -> Medium:
    return [Detection.sample(rng, Shot.sample(rng), View.sample(rng, _loss(rng, 0.05)))]


def _video(rng: Generator) -> Medium:
    """Two to five frames of one shot. Its seed, and so the background, stays."""
    first, view = Shot.sample(rng), View.sample(rng, _loss(rng, 0.3))
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
        frames.append(Detection.sample(rng, shot, view.nearby(rng)))
    return frames


def _loss(rng: Generator, usual: float) -> float:
    """How bad a photo is: one in twelve very much so, for the detector's score to tell."""
    return rng.uniform(0.7, 1) if rng.random() < 1 / 12 else float(np.clip(rng.normal(usual, 0.15), 0, 0.7))


def photo(person: Person, detection: Detection) -> bytes:
    """Draw the photo, as a JPEG file."""
    view = detection.view
    face = draw(person, detection.shot)
    pixels = round(SIZE * (1 - 0.8 * view.loss))
    if pixels < SIZE:
        tiny = cv2.resize(face, (pixels, pixels), interpolation=cv2.INTER_AREA)
        face = cv2.resize(tiny, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
    origin, step = view.place(np.array([0, 1]) - complex(AROUND, AROUND))
    turn = step - origin  # a complex factor, as in `place`; OpenCV wants a matrix
    matrix = np.array([[turn.real, -turn.imag, origin.real], [turn.imag, turn.real, origin.imag]])
    scene = _surrounded(face, detection.shot)
    image = cv2.warpAffine(scene, matrix, view.size, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    return encode(".jpg", image, cv2.IMWRITE_JPEG_QUALITY, round(95 - 45 * view.loss))


def _surrounded(face: np.ndarray, shot: Shot) -> np.ndarray:
    """The aligned crop with AROUND pixels more on each side, out of focus: shoulders below, background elsewhere."""
    scene = cv2.copyMakeBorder(face, AROUND, AROUND, AROUND, AROUND, cv2.BORDER_REPLICATE).astype(np.float32)
    # Hair at the upper edge does not go on for ever: it gives way to what is left and right of it.
    wall = np.linspace(face[:6, :6].mean((0, 1)), face[:6, -6:].mean((0, 1)), len(scene))
    fade = np.clip(np.arange(AROUND, 0, -1) / 14, 0, 1)[:, None, None]
    scene[:AROUND] += fade * (wall - scene[:AROUND])
    clothes = 255 * (np.clip(np.multiply(shot.clothes, shot.exposure), 0, 255) / 255) ** shot.gamma
    cv2.fillPoly(scene, [SHOULDERS + AROUND], clothes.tolist())
    from_middle = np.abs(np.arange(len(scene)) - (len(scene) - 1) / 2)
    beyond = np.maximum(from_middle, from_middle[:, None]) - SIZE / 2  # pixels from the crop's edge
    share = np.clip(beyond / 8, 0, 1)[..., None]
    scene += share * (cv2.GaussianBlur(scene, (0, 0), 4) - scene)
    return np.rint(scene).astype(np.uint8)
