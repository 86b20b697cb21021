"""Faces brought to the 112×112 template by their five landmarks, to the bit as in the published evaluation.

Not by a library: scikit-image's estimate rounds otherwise since numpy 2, and OpenCV 5 interpolates otherwise than
OpenCV 4. Either changes grey levels of the crops.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from utils.datasets.transforms import SIZE

# Where ArcFace's alignment puts eyes, nose and mouth corners; float32, and 8 added in it, as published.
TEMPLATE = np.array(
    [(30.2946, 51.6963), (65.5318, 51.5014), (48.0252, 71.7366), (33.5493, 92.3655), (62.7299, 92.2041)], np.float32
) + np.array((8, 0), np.float32)


def similarity(landmarks: NDArray[np.floating]) -> NDArray[np.float64]:
    """The matrix (2, 3) of the similarity that brings landmarks (5, 2) closest to the template, by least squares.

    Umeyama's solution (IEEE PAMI 1991, equations 40 to 43). As published it is computed in float32, which moves it by
    some 1e-5 pixels; the scale alone is float64. Landmarks in one point, or mirrored, give a matrix that is not finite
    or not a face: the caller's to see.
    """
    source = np.asarray(landmarks, np.float32)
    source_mean, template_mean = source.mean(axis=0), TEMPLATE.mean(axis=0)
    centred = source - source_mean
    u, spread, v = np.linalg.svd((TEMPLATE - template_mean).T @ centred / len(source))
    signs = np.array([1.0, np.sign(np.linalg.det(u) * np.linalg.det(v))])  # a rotation, not a reflection
    matrix = np.empty((2, 3))
    rotation = u @ np.diag(signs) @ v
    scale = 1.0 / float(centred.var(axis=0).sum()) * float(spread @ signs)
    matrix[:, 2] = template_mean - scale * (rotation @ source_mean)
    matrix[:, :2] = scale * rotation
    return matrix


def crop(image: NDArray[np.uint8], matrix: NDArray[np.float64]) -> NDArray[np.uint8]:
    """The face (112, 112, C) of an image (H, W, C), black where that has nothing.

    OpenCV 4's warpAffine: positions in the image in steps of 1/32 pixel, from products rounded to 1/1024.
    """
    (a, b, x), (c, d, y) = matrix
    determinant = a * d - b * c
    inverse = np.array([(d, -b), (-c, a)]) * (1 / determinant)
    offset = -(inverse @ (x, y))
    steps = np.arange(SIZE)
    across = np.rint(inverse[:, :1] * steps * 1024).astype(np.int32)  # (2, W)
    down = np.rint((inverse[:, 1:] * steps + offset[:, np.newaxis]) * 1024).astype(np.int32) + 16  # (2, H)
    positions = (down[:, :, np.newaxis] + across[:, np.newaxis]) >> 5  # (2, H, W) in 1/32 pixel
    pixels = np.clip(positions >> 5, -32768, 32767).astype(np.int16).transpose(1, 2, 0)
    fractions = ((positions[1] & 31) * 32 + (positions[0] & 31)).astype(np.uint16)
    return cv2.remap(image, np.ascontiguousarray(pixels), fractions, cv2.INTER_LINEAR, borderValue=0.0)  # type: ignore[return-value]
