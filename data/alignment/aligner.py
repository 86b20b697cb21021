"""Aligns the faces of one photo to the template on which networks are trained."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from data.alignment.detector import Detector, Face, choose_face
from utils.datasets.alignment import crop, similarity
from utils.errors import UserError

MAX_SIDE = 32_766  # pixels; OpenCV warps no larger images
MAX_SCALE = 2.0  # faces that are enlarged more are called tiny
MIN_SHARPNESS = 30.0  # variance of the Laplacian of the aligned face; below it a face is called blurred


@dataclass(frozen=True)
class AlignedFace:
    """A face after alignment."""

    image: NDArray[np.uint8]  # (112, 112, 3) RGB
    face: Face
    scale: float  # of the alignment: above 1 the face was enlarged
    sharpness: float  # variance of the Laplacian

    @property
    def is_tiny(self) -> bool:
        """Whether the photo has too few pixels of the face."""
        return self.scale > MAX_SCALE

    @property
    def is_blurred(self) -> bool:
        """Whether the aligned face has little detail."""
        return self.sharpness < MIN_SHARPNESS


def align_photo(
    image: NDArray[np.uint8], detector: Detector, all_faces: bool = False
) -> tuple[list[AlignedFace], list[Face]]:
    """Returns the aligned faces of an RGB photo (H, W, 3), and all faces that the detector has found.

    Aligns the largest face near the middle, or all of them, in this order.
    """
    if max(image.shape[:2]) > MAX_SIDE:
        raise UserError(f"is too long: {image.shape[1]}×{image.shape[0]} pixels, {MAX_SIDE} at most", fix="cut it")
    found = detector.find(image)
    aligned: list[AlignedFace] = []
    left = list(found)
    while left and (all_faces or not aligned):
        face = choose_face(left, image.shape[1], image.shape[0])
        left.remove(face)
        landmarks = detector.landmarks(image, face)
        if landmarks is not None:
            matrix = similarity(landmarks)
            if np.isfinite(matrix).all():  # not if all landmarks are one point
                aligned.append(_align(image, face, matrix))
    return aligned, found


def _align(image: NDArray[np.uint8], face: Face, matrix: NDArray[np.float64]) -> AlignedFace:
    aligned = crop(image, matrix)
    grey = cv2.cvtColor(aligned, cv2.COLOR_RGB2GRAY)
    scale = float(np.sqrt(abs(np.linalg.det(matrix[:, :2]))))
    return AlignedFace(aligned, face, scale, float(cv2.Laplacian(grey, cv2.CV_64F).var()))
