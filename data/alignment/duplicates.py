"""Finds photos that show the same picture: equal files, and nearly equal faces."""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from utils.logs.progress_bar import ProgressReporter

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


def first_similar(hashes: Sequence[str]) -> list[int | None]:
    """Returns, for each hash, the index of the first one before it that is nearly equal, or None. Shows progress."""
    content = np.frombuffer(bytes.fromhex("".join(hashes)), np.uint8)
    signs = 2 * np.unpackbits(content).reshape(-1, SIDE * SIDE).astype(np.float32) - 1  # (n, bits) of ±1
    similar: list[int | None] = []
    with ProgressReporter(len(signs) ** 2, "Comparing faces", "comparisons") as progress:
        for start in range(0, len(signs), _BLOCK):
            block = signs[start : start + _BLOCK]
            # The product is 256 for equal hashes, and 2 less for each bit that differs.
            close = block @ signs[: start + len(block)].T >= SIDE * SIDE - 2 * MAX_DISTANCE  # (block, n)
            firsts = close.argmax(axis=1).tolist()  # each hash is close to itself at least
            similar += [first if first < index else None for index, first in enumerate(firsts, start)]
            progress.update(len(block) * (2 * start + len(block)))
    return similar
