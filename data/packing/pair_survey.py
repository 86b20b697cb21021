"""Reads every image of a verification set, and says what is in it."""

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data.alignment.sheet import COLUMNS, Tile, spread
from data.packing.survey import format_counts, format_range
from utils.datasets.image_header import find_suffix, read_image_size
from utils.datasets.verification.bins import open_image, read_bin
from utils.errors import quantity

_MAX_PAIRS = 2 * COLUMNS  # of each kind on the sheet


class PairSurvey:
    """What the N pairs of a verification set are."""

    def __init__(self, path: Path) -> None:
        """Reads and decodes every image, in threads. Raises UserError as `read_bin` does."""
        self.images, self.same = read_bin(path)  # 2N encoded, (N,) bool
        self.distinct = list(dict.fromkeys(self.images))
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            decoded = pool.map(lambda image: open_image(image) is not None, self.distinct)
            bar = tqdm(decoded, total=len(self.distinct), unit="image", desc="Reading", disable=None)
            unreadable = {image for image, is_read in zip(self.distinct, bar, strict=True) if not is_read}
        self.bad = [index for index, image in enumerate(self.images) if image in unreadable]  # indices into images

    def describe(self) -> list[str]:
        """Returns lines about pairs and images."""
        n_pairs, n_same = len(self.same), int(self.same.sum())
        n_bytes = np.array([len(image) for image in self.distinct])
        sizes = [read_image_size(image) for image in self.distinct]
        return [
            f"{quantity(n_pairs, 'pair')} of {quantity(len(self.distinct), 'image')}, {n_bytes.sum() / 1e6:,.1f} MB",
            f"of one person: {quantity(n_same, 'pair')}, {n_same / n_pairs:.1%}",
            f"pixels: {format_counts(Counter(f'{size[0]}×{size[1]}' for size in sizes if size))}",
            f"formats: {format_counts(Counter(filter(None, map(find_suffix, self.distinct))))}",
            f"bytes of an image: {format_range(n_bytes)}",
            f"bad images: {len(self.bad):,}",
        ]

    def draw(self) -> dict[str, list[Tile]]:
        """Returns the tiles of some pairs of one person and some of two, side by side, and those of bad images."""
        parts = {}
        for title, same in (("of one person", True), ("of two people", False)):
            pairs = np.flatnonzero(self.same == same)
            chosen = [pairs[k] for k in spread(len(pairs), _MAX_PAIRS)]
            parts[f"{title}: {quantity(len(pairs), 'pair')}"] = [
                self._make_tile(2 * pair + side) for pair in chosen for side in (0, 1)
            ]
        return parts | {f"bad images: {len(self.bad):,}": [self._make_tile(i) for i in self.bad[: 2 * COLUMNS]]}

    def _make_tile(self, index: int) -> Tile:
        return Tile(self.images[index], f"pair {index // 2}", "cannot be decoded" if index in self.bad else "")
