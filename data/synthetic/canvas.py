"""What faces are drawn with: curves in space, their projection to the crop, and brushes.

Points are (x, y, z) in pixels of the crop, z towards the camera; a face's middle is the origin.
"""

from collections.abc import Iterable
from functools import cache

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from data.synthetic.people import RGB, Person, Shot

SIZE = 112
ZOOM = 2  # of the canvas that is painted on
SIDES = (-1, 1)
# Where ArcFace's alignment puts eyes, nose and mouth corners, as x + iy.
TEMPLATE = np.array([38.29 + 51.70j, 73.53 + 51.50j, 56.03 + 71.74j, 41.55 + 92.37j, 70.73 + 92.20j])

Points = NDArray[np.floating]  # (N, 3)
Row = Iterable[float]


def curve(xs: Row, ys: Row, zs: Row, closed: bool = False) -> Points:
    """A smooth curve through points, given by their coordinates."""
    points = np.array([list(xs), list(ys), list(zs)], float).T
    return _spline(len(points), closed) @ points


def symmetric(xs: Row, ys: Row, zs: Row) -> Points:
    """A smooth closed curve through points down the right half, from middle line to middle line, and their mirrors."""
    right = np.array([list(xs), list(ys), list(zs)], float).T
    points = np.concatenate([right, right[-2:0:-1] * (-1, 1, 1)])
    return _spline(len(points), True) @ points


def oval(x: float, y: float, z: float, a: float, b: float, tilt: float = 0, power: float = 1) -> Points:
    """An ellipse of half axes a and b, the squarer the smaller the power."""
    t = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    u, v = (half * np.sign(f) * np.abs(f) ** power for half, f in ((a, np.cos(t)), (b, np.sin(t))))
    sin, cos = np.sin(tilt), np.cos(tilt)
    return np.stack([x + cos * u - sin * v, y + sin * u + cos * v, np.full_like(t, z)], 1)


def between(edge: Points, other: Points) -> Points:
    """The outline of what is between two edges that run the same way."""
    return np.concatenate([edge, other[::-1]])


@cache
def _spline(n: int, closed: bool, steps: int = 6) -> NDArray[np.floating]:
    """The matrix (m, n) from control points to points on the Catmull-Rom curve through them."""
    segments = n if closed else n - 1
    t = np.arange(steps) / steps
    basis = 0.5 * np.stack([-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, t**3 - t**2], 1)
    matrix = np.zeros((segments * steps + (not closed), n))
    for i in range(segments):
        for j in range(4):
            at = (i + j - 1) % n if closed else min(max(i + j - 1, 0), n - 1)
            matrix[i * steps : (i + 1) * steps, at] += basis[:, j]
    if not closed:
        matrix[-1, -1] = 1
    return matrix


def mix(a: RGB, b: RGB, share: float) -> RGB:
    """The colour that is `share` of the way from a to b."""
    red, green, blue = (x + share * (y - x) for x, y in zip(a, b, strict=True))
    return red, green, blue


def times(colour: RGB, factor: float) -> RGB:
    """The colour made darker or lighter."""
    red, green, blue = (min(channel * factor, 255.0) for channel in colour)
    return red, green, blue


class Projection:
    """From points in space to pixels of the crop: turned by the pose, projected, aligned by the five landmarks."""

    def __init__(self, person: Person, shot: Shot) -> None:
        sin, cos = np.sin([shot.yaw, shot.pitch]), np.cos([shot.yaw, shot.pitch])
        turn = np.array([[cos[0], 0, sin[0]], [0, 1, 0], [-sin[0], 0, cos[0]]])
        nod = np.array([[1, 0, 0], [0, cos[1], sin[1]], [0, -sin[1], cos[1]]])
        self.rotation = (nod @ turn).T
        eyes = [(side * person.eye_x, person.eye_y, 4.0) for side in SIDES]
        mouth = [(side * person.mouth_width, person.mouth_y, 7.0) for side in SIDES]
        found = self._flat(np.array([*eyes, (0, person.nose_y, 17), *mouth]))
        # The rotation and scale that best bring the landmarks onto the template are one complex factor.
        middle, target = found.mean(), TEMPLATE.mean()
        factor = np.vdot(found - middle, TEMPLATE - target) / np.vdot(found - middle, found - middle)
        self.factor = factor * shot.scale * np.exp(1j * shot.roll)
        self.offset = target + complex(*shot.shift) - self.factor * middle

    def _flat(self, points: Points) -> NDArray[np.complexfloating]:
        x, y, z = (points @ self.rotation).T
        return (x + 1j * y) * (1 + z / 450)  # what is nearer is a little larger

    def __call__(self, points: ArrayLike) -> NDArray[np.floating]:
        """Points (N, 3) to pixels (N, 2)."""
        flat = self.factor * self._flat(np.asarray(points, float)) + self.offset
        return np.stack([flat.real, flat.imag], 1)


class Canvas:
    """The picture of one shot while it is painted in flat colours, at ZOOM times the size."""

    def __init__(self, person: Person, shot: Shot) -> None:
        self.project = Projection(person, shot)
        self.pixels = np.zeros((SIZE * ZOOM, SIZE * ZOOM, 3), np.uint8)
        self.figure: list[Points] = []  # the outlines that light models, unlike the background

    def fill(self, outline: ArrayLike, colour: RGB) -> None:
        """Paint what is inside an outline."""
        cv2.fillPoly(self.pixels, [self._fixed(outline)], colour, cv2.LINE_AA, 4)

    def line(self, points: ArrayLike, colour: RGB, width: float, closed: bool = False) -> None:
        """Paint a line, its width in pixels of the crop."""
        thickness = max(1, round(width * abs(self.project.factor) * ZOOM))
        cv2.polylines(self.pixels, [self._fixed(points)], closed, colour, thickness, cv2.LINE_AA, 4)

    def _fixed(self, points: ArrayLike) -> NDArray[np.int32]:
        """Canvas pixels in sixteenths; the centre of crop pixel 0 is between canvas pixels 0 and 1."""
        return np.rint((self.project(points) * ZOOM + 0.5 * (ZOOM - 1)) * 16).astype(np.int32)

    def reduced(self) -> np.ndarray:
        """The flat colours at the final size, (112, 112, 3) float32 from 0 to 255."""
        return cv2.resize(self.pixels, (SIZE, SIZE), interpolation=cv2.INTER_AREA).astype(np.float32)

    def mask(self, *outlines: ArrayLike, blur: float = 0) -> np.ndarray:
        """Where the outlines are: (112, 112) float32 from 0 to 1, its edges `blur` pixels wide."""
        mask = np.zeros((SIZE, SIZE), np.uint8)
        for outline in outlines:
            cv2.fillPoly(mask, [np.rint(self.project(outline) * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
        soft = mask.astype(np.float32) / 255
        return cv2.GaussianBlur(soft, (0, 0), blur) if blur else soft
