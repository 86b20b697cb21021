"""Tiles of large photos, in which a detector with a small input sees small faces."""

import math
from collections.abc import Iterator

MIN_TILE = 160  # pixels, by default
MAX_LEVELS = 4  # the smallest tiles have an eighth of the photo's longer side
_STEP = 0.6  # of a tile's side: a face of up to 0.4 of it is complete in one of the tiles

Tile = tuple[int, int, int]  # left, top, side


def make_tiles(width: int, height: int, smallest: int = MIN_TILE) -> list[Tile]:
    """Returns the photo as one square, then squares of half its side, of a quarter, …, which overlap.

    Each face is complete in a tile whose side is 2.5 to 5 times that of the face, if it is larger than 0.2 of the
    smallest tiles. Photos smaller than twice the smallest side of a tile are one tile.
    """
    side = max(width, height)
    tiles: list[Tile] = []
    for level in range(MAX_LEVELS):
        tile = side >> level
        if level and tile < smallest:
            break
        tiles += [(left, top, tile) for top in _starts(height, tile) for left in _starts(width, tile)]
    return tiles


def _starts(length: int, tile: int) -> Iterator[int]:
    """Yields starts of tiles that cover a length, at most _STEP of a tile apart, the last one ending with it."""
    rest = max(0, length - tile)
    count = math.ceil(rest / (_STEP * tile))
    for i in range(count + 1):
        yield round(i * rest / count) if count else 0
