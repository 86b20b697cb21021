"""Drawing tools for faces: curves in 3D, their projection to the aligned crop, and a canvas to paint on.

Points are (x, y, z) in pixels of the crop, z towards the camera; the origin is the middle of the face.
"""

from collections.abc import Iterable
from functools import cache

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from data.synthetic.people import RGB, Person, Shot

SIZE = 112
SUPERSAMPLING = 2  # canvas pixels per pixel of the crop, in each direction
SIDES = (-1, 1)
# Positions of eyes, nose and mouth corners after ArcFace's alignment, as x + iy.
TEMPLATE = np.array([38.29 + 51.70j, 73.53 + 51.50j, 56.03 + 71.74j, 41.55 + 92.37j, 70.73 + 92.20j])

Points = NDArray[np.floating]  # (N, 3)
Coordinates = Iterable[float]


def curve(xs: Coordinates, ys: Coordinates, zs: Coordinates, closed: bool = False) -> Points:
    """Returns a smooth curve through the points with these coordinates: (N, 3)."""
    points = np.array([list(xs), list(ys), list(zs)], float).T
    return _spline(len(points), closed) @ points


def symmetric(xs: Coordinates, ys: Coordinates, zs: Coordinates) -> Points:
    """Returns a closed, smooth, symmetric curve, (N, 3), through the points of its right half and their mirror images.

    The points go down the right half; the first and the last are on the middle line.
    """
    right = np.array([list(xs), list(ys), list(zs)], float).T
    points = np.concatenate([right, right[-2:0:-1] * (-1, 1, 1)])
    return _spline(len(points), True) @ points


def oval(x: float, y: float, z: float, a: float, b: float, tilt: float = 0, power: float = 1) -> Points:
    """Returns an ellipse, (24, 3), around (x, y) at depth z with half axes a and b; power below 1: squarer."""
    t = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    u, v = (half * np.sign(f) * np.abs(f) ** power for half, f in ((a, np.cos(t)), (b, np.sin(t))))
    sin, cos = np.sin(tilt), np.cos(tilt)
    return np.stack([x + cos * u - sin * v, y + sin * u + cos * v, np.full_like(t, z)], 1)


def between(edge: Points, other: Points) -> Points:
    """Returns the outline of the region between two edges, which must run in the same direction."""
    return np.concatenate([edge, other[::-1]])


@cache
def _spline(n: int, closed: bool, steps: int = 6) -> NDArray[np.floating]:
    """Returns the matrix, (m, n), from n control points to m points on the Catmull-Rom curve through them."""
    segments = n if closed else n - 1
    t = np.arange(steps) / steps
    basis = 0.5 * np.stack([-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, t**3 - t**2], 1)
    matrix = np.zeros((segments * steps + (not closed), n))
    for i in range(segments):
        for j in range(4):
            control = (i + j - 1) % n if closed else min(max(i + j - 1, 0), n - 1)
            matrix[i * steps : (i + 1) * steps, control] += basis[:, j]
    if not closed:
        matrix[-1, -1] = 1
    return matrix


def mix(a: RGB, b: RGB, weight: float) -> RGB:
    """Interpolates two colours: a at weight 0, b at weight 1."""
    red, green, blue = (x + weight * (y - x) for x, y in zip(a, b, strict=True))
    return red, green, blue


def scale_rgb(colour: RGB, factor: float) -> RGB:
    """Multiplies a colour by a factor, below 1 to darken it; limited to 255."""
    red, green, blue = (min(channel * factor, 255.0) for channel in colour)
    return red, green, blue


class Projection:
    """Maps 3D points to pixels of the crop: rotates by the pose, projects, and aligns by the five landmarks."""

    def __init__(self, person: Person, shot: Shot) -> None:
        sin, cos = np.sin([shot.yaw, shot.pitch]), np.cos([shot.yaw, shot.pitch])
        yaw = np.array([[cos[0], 0, sin[0]], [0, 1, 0], [-sin[0], 0, cos[0]]])
        pitch = np.array([[1, 0, 0], [0, cos[1], sin[1]], [0, -sin[1], cos[1]]])
        self.rotation = (pitch @ yaw).T
        eyes = [(side * person.eye_x, person.eye_y, 4.0) for side in SIDES]
        mouth = [(side * person.mouth_width, person.mouth_y, 7.0) for side in SIDES]
        landmarks = self._perspective(np.array([*eyes, (0, person.nose_y, 17), *mouth]))
        # One complex factor holds the rotation and scale that best map the landmarks to the template.
        centre, target = landmarks.mean(), TEMPLATE.mean()
        centred = landmarks - centre
        factor = np.vdot(centred, TEMPLATE - target) / np.vdot(centred, centred)
        self.factor = factor * shot.scale * np.exp(1j * shot.roll)
        self.offset = target + complex(*shot.shift) - self.factor * centre

    def _perspective(self, points: Points) -> NDArray[np.complexfloating]:
        """Rotates and projects points (N, 3) to (N,) x + iy, before alignment."""
        x, y, z = (points @ self.rotation).T
        return (x + 1j * y) * (1 + z / 450)  # perspective: nearer points move outwards

    def __call__(self, points: ArrayLike) -> NDArray[np.floating]:
        """Maps points (N, 3) to pixels (N, 2)."""
        pixels = self.factor * self._perspective(np.asarray(points, float)) + self.offset
        return np.stack([pixels.real, pixels.imag], 1)


class Canvas:
    """The image of one shot, painted in flat colours at SUPERSAMPLING times the final size."""

    def __init__(self, person: Person, shot: Shot) -> None:
        self.project = Projection(person, shot)
        self.pixels = np.zeros((SIZE * SUPERSAMPLING, SIZE * SUPERSAMPLING, 3), np.uint8)
        self.figure: list[Points] = []  # outlines of everything but the background, for shading

    def fill(self, outline: ArrayLike, colour: RGB) -> None:
        """Fills the inside of an outline, (N, 3), with a colour."""
        cv2.fillPoly(self.pixels, [self._to_fixed_point(outline)], colour, cv2.LINE_AA, 4)

    def line(self, points: ArrayLike, colour: RGB, width: float, closed: bool = False) -> None:
        """Draws a line through points (N, 3). The width is in pixels of the crop."""
        thickness = max(1, round(width * abs(self.project.factor) * SUPERSAMPLING))
        cv2.polylines(self.pixels, [self._to_fixed_point(points)], closed, colour, thickness, cv2.LINE_AA, 4)

    def _to_fixed_point(self, points: ArrayLike) -> NDArray[np.int32]:
        """Returns canvas pixels (N, 2) in sixteenths. The centre of crop pixel 0 is between canvas pixels 0 and 1."""
        return np.rint((self.project(points) * SUPERSAMPLING + 0.5 * (SUPERSAMPLING - 1)) * 16).astype(np.int32)

    def downsample(self) -> np.ndarray:
        """Returns the flat colours at the final size, (112, 112, 3) float32 from 0 to 255."""
        return cv2.resize(self.pixels, (SIZE, SIZE), interpolation=cv2.INTER_AREA).astype(np.float32)

    def mask(self, *outlines: ArrayLike, blur: float = 0) -> np.ndarray:
        """Returns a mask of the outlines' inside, (112, 112) float32 from 0 to 1, with edges `blur` pixels wide."""
        mask = np.zeros((SIZE, SIZE), np.uint8)
        for outline in outlines:
            cv2.fillPoly(mask, [np.rint(self.project(outline) * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
        soft = mask.astype(np.float32) / 255
        return cv2.GaussianBlur(soft, (0, 0), blur) if blur else soft
