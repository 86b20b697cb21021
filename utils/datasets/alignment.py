"""Aligns faces to the 112×112 template by five landmarks, bit-exact with the published evaluation.

Uses its own implementation, because library versions differ: scikit-image's estimate rounds differently since numpy 2,
and OpenCV 5 interpolates differently from OpenCV 4. Both change pixel values of the crops.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

SIZE = 112  # height and width of an aligned face in pixels
# Positions of eyes, nose and mouth corners in ArcFace's alignment. The 8 pixels are added in float32, as published.
TEMPLATE = np.array(
    [(30.2946, 51.6963), (65.5318, 51.5014), (48.0252, 71.7366), (33.5493, 92.3655), (62.7299, 92.2041)], np.float32
) + np.array((8, 0), np.float32)


def similarity(landmarks: NDArray[np.floating]) -> NDArray[np.float64]:
    """Returns the similarity transform (2, 3) that maps landmarks (5, 2) to the template by least squares.

    Umeyama's solution (IEEE PAMI 1991, equations 40 to 43). Computed in float32 as published, which changes it by about
    1e-5 pixels; only the scale is float64. Landmarks that coincide give a matrix that is not finite, and flipped
    landmarks one that does not show a face: the caller must check.
    """
    source = np.asarray(landmarks, np.float32)
    source_mean, template_mean = source.mean(axis=0), TEMPLATE.mean(axis=0)
    centred = source - source_mean
    u, singular_values, v = np.linalg.svd((TEMPLATE - template_mean).T @ centred / len(source))
    signs = np.array([1.0, np.sign(np.linalg.det(u) * np.linalg.det(v))])  # a rotation, not a reflection
    matrix = np.empty((2, 3))
    rotation = u @ np.diag(signs) @ v
    scale = 1.0 / float(centred.var(axis=0).sum()) * float(singular_values @ signs)
    matrix[:, 2] = template_mean - scale * (rotation @ source_mean)
    matrix[:, :2] = scale * rotation
    return matrix


def crop(image: NDArray[np.uint8], matrix: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Crops the face (112, 112, C) from an image (H, W, C), black outside the image.

    Computes OpenCV 4's warpAffine: positions in steps of 1/32 pixel, from products rounded to 1/1024.
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
