"""Draws synthetic faces: `draw` returns the 112×112 crop that a detector and ArcFace's alignment would produce.

The features are painted in flat colours from back to front; `data.synthetic.light` then shades and photographs them.
"""

import cv2
import numpy as np
from numpy.random import Generator

from data.synthetic.canvas import SIDES, Canvas, between, curve, mix, oval, scale_rgb, symmetric
from data.synthetic.light import photograph, shade, soften
from data.synthetic.people import RGB, Person, Shot
from data.synthetic.shapes import hair_edges, head, lips

VERSION = 1  # version of the drawing code; change it when the images change


def draw(person: Person, shot: Shot) -> np.ndarray:
    """Draws an aligned photo, (112, 112, 3) uint8 RGB. The same person and shot give the same bytes."""
    rng = np.random.default_rng(shot.seed)
    canvas = Canvas(person, shot)
    _background(canvas, shot, rng)
    _body(canvas, person, shot.clothes)
    canvas.figure.append(head(person))
    canvas.fill(head(person), person.skin)
    for side in SIDES:
        _eye(canvas, person, shot, side)
        _brow(canvas, person, shot.brow_raise, side)
    _nose(canvas, person)
    _mouth(canvas, person, shot)
    for x, y, radius in person.moles:
        canvas.fill(oval(x, y, 6, radius, radius), scale_rgb(person.skin, 0.45))
    if not person.bald:
        _hair(canvas, person)
    if shot.glasses:
        _glasses(canvas, person, shot, shot.glasses)
    flat = canvas.downsample()
    soften(flat, canvas, person, shot)
    return photograph(flat * shade(canvas, person, shot), shot, rng)


def _background(canvas: Canvas, shot: Shot, rng: Generator) -> None:
    """Paints a gradient of three colours and a few boxes that resemble furniture."""
    a, b, c = np.array(shot.background, np.float32)
    size = len(canvas.pixels)
    corners = np.array([[a, b], [(a + b) / 2, c]])
    canvas.pixels[:] = cv2.resize(corners, (size, size), interpolation=cv2.INTER_LINEAR)
    for _ in range(int(rng.integers(0, 6))):
        x, y, width, height = rng.uniform(0, size, 4).astype(int)
        canvas.pixels[y : y + height // 2, x : x + width // 2] = np.clip(a + rng.uniform(-0.5, 1.5) * (c - a), 0, 255)


def _body(canvas: Canvas, p: Person, clothes: RGB) -> None:
    """Paints everything behind the face: long hair, neck, clothes and ears."""
    w, long_hair = p.face_width, p.hair_end > 0 and not p.bald
    if long_hair:
        out, end = 38 * w + p.hair_volume, p.hair_end
        behind = symmetric((0, out, out, 0), (-70, -30, end, end + 6), [-20] * 4)
        canvas.figure.append(behind)
        canvas.fill(behind, scale_rgb(p.hair, 0.6))
    neck = 24 * w * p.jaw
    throat = symmetric((0, neck, neck + 4, 0), (10, 10, 90, 90), [-18] * 4)
    shirt = symmetric((0, 20, 50, 75, 0), (52, 44, 54, 90, 90), (-8, -16, -16, -16, -16))
    canvas.figure += [throat, shirt]
    canvas.fill(throat, scale_rgb(p.skin, 0.76))
    canvas.fill(shirt, clothes)
    for side in () if long_hair else SIDES:
        x = side * (34.5 * w + p.ear_out)
        ear = oval(x, -12, -20, 5, p.ear, -0.15 * side)
        canvas.figure.append(ear)
        canvas.fill(ear, scale_rgb(p.skin, 0.92))
        canvas.fill(oval(x, -12, -20, 2.6, p.ear * 0.6, -0.15 * side), scale_rgb(p.skin, 0.72))


def _eye(canvas: Canvas, p: Person, s: Shot, side: int) -> None:
    """Paints an eyeball, and over it the lids. side: -1 for the left eye of the image, 1 for the right."""
    x, y, a = side * p.eye_x, p.eye_y, p.eye_width
    height, squint = a * p.eye_open, max(s.smile, 0)
    low = height * (0.75 - 0.2 * squint)
    top = max(height * (1.15 * s.eyelid - 0.12 * squint), 0.6 - low)

    def path(us: tuple[float, ...], vs: tuple[float, ...]) -> np.ndarray:
        """Returns a curve; us run from -1 at the inner corner to 1 at the outer one, vs are in pixels down."""
        u = a * np.array(us)
        return curve(x + side * u * np.cos(p.eye_tilt), y + np.array(vs) - u * np.sin(p.eye_tilt), [4] * len(u))

    canvas.fill(oval(x, y, 4, a, height * 1.4, -p.eye_tilt * side), (236, 232, 228))
    ix, iy, r = x + s.gaze[0], y + s.gaze[1] - 0.6, p.iris_size
    canvas.fill(oval(ix, iy, 4.5, r, r), scale_rgb(p.iris, 0.8))
    canvas.fill(oval(ix, iy + 0.4, 4.5, r * 0.78, r * 0.78), scale_rgb(p.iris, 1.25))
    canvas.fill(oval(ix, iy, 4.5, r * 0.45, r * 0.45), (18, 16, 18))
    canvas.fill(oval(ix + 1.3 * s.light[0], iy - 0.4 + 1.3 * s.light[1], 5, 0.9, 0.9), (250, 250, 250))

    upper = path((-1, -0.55, 0.05, 0.6, 1), (1, -0.72 * top, -top, -0.7 * top, 0))
    lower = path((-1, -0.4, 0.2, 0.7, 1), (1, 0.8 * low, low, 0.7 * low, 0))
    rim = 1.6 * height + 2
    canvas.fill(
        between(upper, path((-1.25, -0.9, 0, 0.9, 1.25), (0, -rim, -1.3 * rim, -rim, -1))), scale_rgb(p.skin, 0.9)
    )
    canvas.fill(between(lower, path((-1.25, -0.8, 0, 0.8, 1.25), (1, rim, 1.2 * rim, rim, 0))), scale_rgb(p.skin, 0.97))
    canvas.line(lower, scale_rgb(p.skin, 0.6), 0.6)
    canvas.line(upper, mix(scale_rgb(p.skin, 0.3), (26, 18, 18), 0.6), 1.1)
    canvas.line(upper[3:-2] - np.array([0, 2 + 0.2 * height, 0]), scale_rgb(p.skin, 0.68), 0.7)


def _brow(canvas: Canvas, p: Person, raised: float, side: int) -> None:
    along = np.array([-1, -0.45, 0.2, 0.7, 1.05])
    x = side * (p.eye_x + 0.5 + p.brow_width * along)
    y = p.eye_y - p.brow_gap - raised - p.brow_width * along * np.sin(p.brow_tilt)
    y -= p.brow_arch * np.array([-0.6, 0.3, 1, 0.6, -0.6])
    half, z = p.brow_thickness * np.array([0.42, 0.55, 0.5, 0.34, 0.08]), np.array([8, 8.5, 8, 5, 2])
    outline = curve([*x, *x[::-1]], [*(y - half), *(y + half)[::-1]], [*z, *z[::-1]], closed=True)
    canvas.fill(outline, mix(scale_rgb(p.hair, 0.75), p.skin, 0.15))


def _nose(canvas: Canvas, p: Person) -> None:
    """Paints only the dark parts of the nose; its shape comes from the shading."""
    y, wide = p.nose_y, p.nose_width
    for side in SIDES:
        wing = curve(side * wide * np.array([0.8, 1, 0.85]), (y - 3.5, y + 0.5, y + 3.4), (8, 8, 9))
        canvas.line(wing, scale_rgb(p.skin, 0.66), 0.8)
        canvas.fill(oval(side * wide * 0.45, y + 3.6, 12, wide * 0.24, 1.1, -0.25 * side), scale_rgb(p.skin, 0.5))
    base = curve((-wide * 0.35, 0, wide * 0.35), (y + 4.6, y + 5.3, y + 4.6), (13, 15, 13))
    canvas.line(base, scale_rgb(p.skin, 0.62), 0.8)


def _mouth(canvas: Canvas, p: Person, s: Shot) -> None:
    top, inner_top, inner_low, low = lips(p, s)
    red = mix(scale_rgb(p.skin, 0.84), (170, 62, 66), p.lip_red)
    canvas.fill(between(inner_top, inner_low), (52, 20, 22))
    if s.mouth_open > 0.15:
        canvas.fill(between(inner_top, 0.55 * inner_top + 0.45 * inner_low), (228, 224, 214))  # teeth
    canvas.fill(between(top, inner_top), scale_rgb(red, 0.86))
    canvas.fill(between(inner_low, low), red)
    canvas.line(inner_low, scale_rgb(red, 0.5), 0.6)


def _hair(canvas: Canvas, p: Person) -> None:
    outside, inside = hair_edges(p)
    canvas.figure.append(between(outside, inside))
    canvas.fill(canvas.figure[-1], p.hair)
    positions = np.linspace(0.04, 0.96, 26)
    roots = inside[(positions * (len(inside) - 1)).astype(int)]
    tips = outside[(positions * (len(outside) - 1)).astype(int)]
    bends = 0.5 * (roots + tips) + np.array([2 * p.parting, -1.5, 0])
    for i, strand in enumerate(np.stack([roots, bends, tips], 1)):
        canvas.line(strand, scale_rgb(p.hair, (0.78, 1.22, 0.9)[i % 3]), 0.9)


def _glasses(canvas: Canvas, p: Person, s: Shot, colour: RGB) -> None:
    (a, b), x, y = s.lens_size, p.eye_x + 0.6, p.eye_y
    before = canvas.pixels.copy()
    rims = {side: oval(side * x, y + 1, 12, a, b, power=0.75) for side in SIDES}
    for rim in rims.values():
        canvas.fill(rim, scale_rgb(colour, 0.4))
    cv2.addWeighted(canvas.pixels, s.lens, before, 1 - s.lens, 0, canvas.pixels)
    for side, rim in rims.items():
        canvas.line(rim, colour, 1.1, closed=True)
        canvas.line([(side * (x + a), y - 2, 12), (side * 38 * p.face_width, y - 1, -20)], colour, 1.1)
    canvas.line(curve((a - x, 0, x - a), (y, y - 1.5, y), (13, 15, 13)), colour, 1.1)
