"""Adds soft colours and shading to a face painted in flat colours, and simulates the camera.

Images are (112, 112, …) float32.
"""

import cv2
import numpy as np
from numpy.random import Generator

from data.synthetic.canvas import SIDES, Canvas, between, mix, oval, scale_rgb
from data.synthetic.people import RGB, Person, Shot
from data.synthetic.shapes import beard, head, lips, moustache, nose


def soften(flat: np.ndarray, canvas: Canvas, p: Person, s: Shot) -> None:
    """Blends features without sharp edges into the colours (112, 112, 3), in place: blush, hollows, freckles, beard."""
    cheeks = canvas.mask(*(oval(side * 21, 6, 2, 9, 7) for side in SIDES), blur=4)
    _blend(flat, cheeks * (0.5 * p.blush), mix(p.skin, (200, 70, 70), 0.5))
    sockets = canvas.mask(*(oval(side * (p.eye_x - 1), p.eye_y - 3, 3, 9, 6) for side in SIDES), blur=3)
    under_nose = canvas.mask(oval(0, p.nose_y + 7, 8, p.nose_width * 0.8, 2.5), blur=1.5)
    under_lip = canvas.mask(oval(0, p.mouth_y + p.lip_lower + 4.5, 6, 8, 1.6), blur=1.5)
    flat *= (1 - 0.16 * sockets - 0.2 * under_nose - 0.2 * under_lip)[..., None]
    if p.freckles:
        spots = np.random.default_rng(p.freckles).normal((0, 2), (13, 5), (40, 2))
        _blend(flat, canvas.mask(*(oval(x, y, 8, 0.6, 0.6) for x, y in spots)) * 0.4, scale_rgb(p.skin, 0.5))
    if p.beard:
        upper, _, _, lower = lips(p, s)
        hair = np.maximum(p.beard * canvas.mask(beard(p), blur=1.3), p.moustache * canvas.mask(moustache(p), blur=1))
        bare = canvas.mask(head(p), blur=0.8) * (1 - canvas.mask(between(upper, lower)))
        _blend(flat, hair * bare, scale_rgb(p.hair, 0.75))


def _blend(flat: np.ndarray, opacity: np.ndarray, colour: RGB) -> None:
    """Blends a colour into `flat`, (112, 112, 3), in place; opacity: (112, 112) from 0 to 1."""
    flat += opacity[..., None] * (np.array(colour, np.float32) - flat)


def shade(canvas: Canvas, p: Person, s: Shot) -> np.ndarray:
    """Returns the brightness factor of each pixel, (112, 112, 1): around 1, and exactly 1 in the background."""
    relief = _relief(canvas, p, s)
    slope_x, slope_y = cv2.Sobel(relief, -1, 1, 0, scale=0.125), cv2.Sobel(relief, -1, 0, 1, scale=0.125)
    x, y, z = (np.array(s.light) / np.linalg.norm(s.light)).astype(np.float32)
    lit = np.maximum(z - slope_x * x - slope_y * y, 0) / np.sqrt(1 + slope_x**2 + slope_y**2)
    lightness = s.ambient + (1 - s.ambient) * lit * (1.25 / (0.45 + 0.55 * z))
    return (1 + canvas.mask(*canvas.figure, blur=0.7) * (lightness - 1))[..., None]


def _relief(canvas: Canvas, p: Person, s: Shot) -> np.ndarray:
    """Returns heights (112, 112) in pixels towards the camera, from blurred outlines, so that shapes are rounded."""
    upper, _, _, lower = lips(p, s)
    body = np.maximum(canvas.mask(head(p)), 0.4 * canvas.mask(*canvas.figure))
    relief = np.float32(24) * cv2.GaussianBlur(body, (0, 0), 8)
    relief += 5 * canvas.mask(nose(p), blur=2)
    relief += 2 * canvas.mask(between(upper, lower), blur=1.5)
    relief += 3.5 * canvas.mask(*(oval(side * 20 * p.cheek, 2, 0, 9, 7) for side in SIDES), blur=4.5)
    relief += 2.5 * canvas.mask(oval(0, p.chin_y - 7, 4, p.chin_width * 0.6, 4), blur=3)
    relief -= 3 * canvas.mask(*(oval(side * (p.eye_x - 1), p.eye_y, 3, 10, 7) for side in SIDES), blur=3)
    return relief


def photograph(scene: np.ndarray, s: Shot, rng: Generator) -> np.ndarray:
    """Applies exposure, blur, contrast, noise and JPEG compression.

    Takes a scene (112, 112, 3) of values from 0, also above 255, and returns uint8.
    """
    light = scene * np.array(s.exposure, np.float32)
    if s.blur > 0.25:
        light = np.asarray(cv2.GaussianBlur(light, (0, 0), s.blur))
    image = 255 * (np.clip(light, 0, 255) / 255) ** np.float32(s.gamma)
    image += s.noise * rng.standard_normal(image.shape, np.float32)
    coded = cv2.imencode(".jpg", np.clip(image, 0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, s.jpeg])[1]
    return np.asarray(cv2.imdecode(coded, cv2.IMREAD_COLOR), np.uint8)
