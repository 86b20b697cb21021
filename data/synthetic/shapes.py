"""Outlines of facial features that painting and shading share. Each is an array of points (N, 3)."""

import numpy as np

from data.synthetic.canvas import Points, curve, symmetric
from data.synthetic.people import Person, Shot


def head(p: Person) -> Points:
    """Returns the outline of skull, cheeks, jaw and chin."""
    w = p.face_width
    return symmetric(
        (0, 25 * w, 36 * w, 36.5 * w, 35.5 * w * p.cheek, 29.5 * w * p.jaw, p.chin_width, 0),
        (-80, -73, -50, -24, 0, 20, p.chin_y - 3.5, p.chin_y),
        (-14, -14, -14, -13, -9, -5, 1, 3),
    )


def lips(p: Person, s: Shot) -> tuple[Points, Points, Points, Points]:
    """Returns four edges of the mouth, each from left to right: upper, inner upper, inner lower and lower."""
    wide = p.mouth_width * (1 + 0.16 * s.smile - 0.06 * s.mouth_open)
    y, gap, corner = p.mouth_y, 4.5 * s.mouth_open, -0.5 - 3.2 * s.smile
    xs = wide * np.array([-1, -0.5, -0.17, 0, 0.17, 0.5, 1])

    def edge(height: float, dip: float) -> Points:
        side = 0.55 * height + 0.3 * corner
        return curve(
            xs, y + np.array([corner, side, height, height + dip, height, side, corner]), (6, 9, 11, 11, 11, 9, 6)
        )

    up, down = -0.4 * gap, 0.6 * gap
    return edge(up - p.lip_upper, 0.8), edge(up, 0.6), edge(down, 0), edge(down + p.lip_lower, 0.2)


def nose(p: Person) -> Points:
    """Returns the outline of the nose's ridge and tip."""
    return symmetric(
        (0, p.nose_bridge, p.nose_bridge * 1.1, p.nose_width * 0.8, 0),
        (p.eye_y - 8, p.eye_y + 2, p.nose_y - 7, p.nose_y + 1, p.nose_y + 4.5),
        (6, 7, 12, 12, 17),
    )


def beard(p: Person) -> Points:
    """Returns the outline from below the lips over the cheeks, up to `beard_top`, and back along the jaw."""
    w, top = p.face_width, p.mouth_y + 4 - 22 * p.beard_top
    return symmetric(
        (0, p.mouth_width + 3, (16 + 18 * p.beard_top) * w, 36 * w, 31 * w * p.jaw, p.chin_width + 1, 0),
        (p.mouth_y + p.lip_lower + 5, p.mouth_y + 1, top, max(top, 4), 22, p.chin_y - 2, p.chin_y + 1.5),
        (8, 6, -4, -10, -5, 1, 3),
    )


def moustache(p: Person) -> Points:
    """Returns the outline from the nose over the upper lip, down to the corners of the mouth."""
    return symmetric(
        (0, p.mouth_width * 0.7, p.mouth_width + 3, p.mouth_width, 0),
        (p.nose_y + 7, p.mouth_y - 4.5, p.mouth_y + 3, p.mouth_y + 1, p.mouth_y - 1),
        (11, 8, 6, 7, 11),
    )


def hair_edges(p: Person) -> tuple[Points, Points]:
    """Returns the outer edge of the hair and the hairline, each from the left end over the head to the right."""
    w, v, end, part = p.face_width, p.hair_volume, p.hair_end, p.parting
    side, temple, corner = 36 * w + 0.5 * v, min(end, -24), p.hairline - p.recess
    xs = np.array([side, side + 0.5 * v, 33 * w + v, 18 * w])
    ys = [end, temple - 6, -58, -79 - v]
    outside = curve([*-xs, *xs[::-1]], [*ys, *ys[::-1]], (-12, -14, -14, -14, -14, -14, -14, -12))
    xs = w * np.array([35.5 if end < 0 else 33, 35, 27, 15])
    ys = [end, temple - 2, corner + 6, corner]
    inside = curve(
        [*-xs, 14 * part, *xs[::-1]],
        [*ys, p.hairline - 2, corner + 2 * part, *ys[2::-1]],
        (-11, -9, -3, 0, 2, 0, -3, -9, -11),
    )
    outside[:, :2] += 1.5 * p.curl * np.sin(1.9 * np.arange(len(outside)))[:, None]
    inside[:, 1] += 1.2 * p.curl * np.sin(2.1 * np.arange(len(inside)))
    return outside, inside
