"""Finds photos that show the same picture: equal files, and nearly equal faces."""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

SIDE = 16  # of the grid of a hash, which has SIDE² bits
# Bits in which the hashes of nearly equal faces differ at most. Of 467 photos of LFW, any two differed in 38 or more; a
# photo and its copy at 0.7 of its size, brighter and with JPEG quality 50, in 23 or fewer for 95 of 100.
MAX_DISTANCE = 24
_BLOCK = 512  # hashes compared at once with all others


def difference_hash(image: NDArray[np.uint8]) -> str:
    """Returns 256 bits in hexadecimal: whether each of 16×16 areas of an RGB image is brighter than its neighbour."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    areas = cv2.resize(grey, (SIDE + 1, SIDE), interpolation=cv2.INTER_AREA).astype(np.int16)
    return np.packbits(areas[:, :-1] > areas[:, 1:]).tobytes().hex()


def first_equal(keys: Sequence[str]) -> list[int | None]:
    """Returns, for each key, the index of the first equal one before it, None for the first."""
    first: dict[str, int] = {}
    return [None if first.setdefault(key, index) == index else first[key] for index, key in enumerate(keys)]


def first_similar(hashes: Sequence[str | None]) -> list[int | None]:
    """Returns, for each hash, the index of the first one before it that is nearly equal, or None."""
    known = [index for index, value in enumerate(hashes) if value]
    content = np.frombuffer(bytes.fromhex("".join(hashes[index] or "" for index in known)), np.uint8)
    signs = 2 * np.unpackbits(content).reshape(-1, SIDE * SIDE).astype(np.float32) - 1  # (n, bits) of ±1
    similar: list[int | None] = [None] * len(hashes)
    for start in range(0, len(known), _BLOCK):
        block = signs[start : start + _BLOCK]
        distances = (SIDE * SIDE - block @ signs[: start + len(block)].T) / 2  # (block, n)
        for row, close in enumerate(distances <= MAX_DISTANCE):
            first = int(np.argmax(close))  # it is close to itself at least
            if first < start + row:
                similar[known[start + row]] = known[first]
    return similar
