"""The interface of face detectors, and the choice of one face among several."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)  # equal only to itself
class Face:
    """A face in a photo, in pixels of the photo."""

    box: NDArray[np.float64]  # (4,) left, top, width, height
    score: float  # from 0 to 1
    points: NDArray[np.float64]  # (K, 2) landmarks that the detector itself reports

    @property
    def centre(self) -> NDArray[np.float64]:
        """Centre of the box, (2,)."""
        return self.box[:2] + self.box[2:] / 2


class Detector(Protocol):
    """Finds faces and their landmarks. One instance serves one thread."""

    name: str  # with the version of its weights, for the record of a run

    def find(self, image: NDArray[np.uint8]) -> list[Face]:
        """Returns the faces in an RGB image (H, W, 3), best first, each once."""

    def landmarks(self, image: NDArray[np.uint8], face: Face) -> NDArray[np.float64] | None:
        """Returns the centres of the eyes, the tip of the nose and the corners of the mouth, (5, 2).

        The eye and the corner on the left of the image come first. None if a closer look finds no face.
        """


def choose_face(faces: list[Face], width: int, height: int) -> Face:
    """Returns the largest face near the middle of a photo: by its area, less twice its squared distance from there."""
    middle = np.array([width, height]) / 2

    def rank(face: Face) -> float:
        return float(face.box[2] * face.box[3] - 2 * np.sum((face.centre - middle) ** 2))

    return max(faces, key=rank)


def suppress_overlaps(faces: list[Face], limit: float = 0.4) -> list[Face]:
    """Returns the faces, best first, without those that mostly cover a better one or are covered by it.

    limit: largest area of the overlap, as a fraction of the smaller box. Tiles report parts of a face, whose boxes may
    be much smaller than that of the whole face.
    """
    kept: list[Face] = []
    for face in sorted(faces, key=lambda face: -face.score):
        if all(_overlap(face.box, other.box) <= limit for other in kept):
            kept.append(face)
    return kept


def _overlap(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Returns the area that two boxes share, as a fraction of the smaller one."""
    sides = np.minimum(a[:2] + a[2:], b[:2] + b[2:]) - np.maximum(a[:2], b[:2])
    return float(np.prod(np.maximum(0, sides)) / min(np.prod(a[2:]), np.prod(b[2:])))
