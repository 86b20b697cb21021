"""Contact sheets: small pictures in rows, with a name under each."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from utils.datasets.photos import open_photo
from utils.errors import UserError, one_line
from utils.filesystem import open_regular_file

SIDE, CAPTION, MARGIN, COLUMNS = 112, 30, 8, 12  # pixels; tiles a row
_BOX_MARGIN = 1.3  # side of what is shown around a box, relative to its longer side
_GREY, _RED, _DARK = (200, 200, 200), (200, 30, 30), (40, 40, 40)


@dataclass(frozen=True)
class Tile:
    """A picture of the sheet."""

    photo: Path | bytes  # a file, or the content of one
    name: str
    problem: str = ""  # shown in red
    box: Sequence[float] | None = None  # left, top, width and height of the face to show; None for the whole photo


def spread(n: int, limit: int) -> list[int]:
    """Returns at most `limit` numbers from 0 to n - 1, at even distances, to choose tiles or images by."""
    return [i * n // min(n, limit) for i in range(min(n, limit))]


def draw_sheet(parts: dict[str, list[Tile]]) -> bytes:
    """Returns a PNG with the tiles of each part under its title."""
    rows: list[NDArray[np.uint8]] = []
    for title, tiles in parts.items():
        if tiles:
            rows.append(_title(title))
            rows += [_row(tiles[start : start + COLUMNS]) for start in range(0, len(tiles), COLUMNS)]
    sheet = np.concatenate(rows or [_title("no photos")])
    return cv2.imencode(".png", sheet[..., ::-1])[1].tobytes()


def _title(text: str) -> NDArray[np.uint8]:
    band = np.full((40, MARGIN + COLUMNS * (SIDE + MARGIN), 3), 255, np.uint8)
    _write(band, text, MARGIN, 27, 0.6, _DARK)
    return band


def _row(tiles: list[Tile]) -> NDArray[np.uint8]:
    row = np.full((SIDE + CAPTION + MARGIN, MARGIN + COLUMNS * (SIDE + MARGIN), 3), 255, np.uint8)
    for i, tile in enumerate(tiles):
        x = MARGIN + i * (SIDE + MARGIN)
        row[:SIDE, x : x + SIDE] = _thumbnail(tile)
        if tile.problem:
            cv2.rectangle(row, (x, 0), (x + SIDE - 1, SIDE - 1), _RED, 2)
            _write(row, tile.problem[:19], x, SIDE + 26, 0.33, _RED)
        _write(row, tile.name[-19:], x, SIDE + 12, 0.33, _DARK)
    return row


def _write(image: NDArray[np.uint8], text: str, x: int, y: int, size: float, colour: tuple[int, int, int]) -> None:
    text = one_line(text).encode("ascii", "replace").decode()  # OpenCV's font has no other characters
    cv2.putText(image, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, size, colour, 1, cv2.LINE_AA)


def _thumbnail(tile: Tile) -> NDArray[np.uint8]:
    """Returns the picture, scaled and centred in a square; a grey square if it cannot be read."""
    square = np.full((SIDE, SIDE, 3), 235, np.uint8)
    try:
        image = _read(tile.photo)
    except (OSError, UserError):
        cv2.line(square, (0, 0), (SIDE, SIDE), _GREY, 1)
        return square
    if tile.box:
        left, top, width, height = tile.box
        side = max(1, round(_BOX_MARGIN * max(width, height)))
        image = cv2.getRectSubPix(image, (side, side), (left + width / 2, top + height / 2))  # type: ignore[assignment]
    scale = SIDE / max(image.shape[:2])
    height, width = (max(1, round(length * scale)) for length in image.shape[:2])
    top, left = (SIDE - height) // 2, (SIDE - width) // 2
    small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    square[top : top + height, left : left + width] = small
    return square


@lru_cache(maxsize=1)  # several tiles in a row may show the same photo
def _read(photo: Path | bytes) -> NDArray[np.uint8]:
    """Returns the RGB pixels (H, W, 3) of a photo. Raises OSError and UserError."""
    if isinstance(photo, Path):
        with open_regular_file(photo) as file:
            photo = file.read()
    with open_photo(photo) as image:
        return image
