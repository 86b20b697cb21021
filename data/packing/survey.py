"""Reads every image of a training set, and says what is in it."""

import math
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from data.packing.photo import find_problem
from utils.datasets.face_dataset import FaceDataset
from utils.datasets.image_dataset import MAX_CLASSES
from utils.datasets.image_header import find_suffix, read_image_size
from utils.errors import UserError, quantity

_CHUNK = 64  # images per task of a thread
_BAR = 40  # characters of the longest bar
FEW = 5  # images of a person


class _Image(NamedTuple):
    label: int  # -1: none
    size: str  # width×height in pixels; "": no image
    suffix: str  # of the format
    n_bytes: int
    problem: str  # why training cannot read it, or ""


class Survey:
    """What the N images of a training set are. Those with a problem are in no count of people."""

    def __init__(self, dataset: FaceDataset) -> None:
        """Reads and decodes every image, in threads. Raises UserError where the index lacks a record."""
        dataset.reader.check_complete()
        self.labels = np.full(len(dataset), -1)  # (N,) -1 for a bad record
        self.n_bytes = np.zeros(len(dataset), np.int64)  # (N,)
        self.sizes: Counter[str] = Counter()
        self.suffixes: Counter[str] = Counter()
        self.problems: dict[int, str] = {}  # by index
        starts = range(0, len(dataset), _CHUNK)
        pool = ThreadPoolExecutor(os.cpu_count())
        try:
            chunks = pool.map(
                lambda start: [_read(dataset, key) for key in dataset.keys[start : start + _CHUNK]], starts
            )
            with tqdm(total=len(dataset), unit="image", desc="Reading", disable=None) as bar:
                for start, images in zip(starts, chunks, strict=True):
                    for index, image in enumerate(images, start):
                        self._add(index, image)
                    bar.update(len(images))
        finally:
            pool.shutdown(cancel_futures=True)

    def _add(self, index: int, image: _Image) -> None:
        self.n_bytes[index] = image.n_bytes
        self.sizes.update([image.size] if image.size else [])
        self.suffixes.update([image.suffix] if image.suffix else [])
        if image.problem:
            self.problems[index] = image.problem
        else:
            self.labels[index] = image.label

    def images_per_person(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the P labels that have images, in ascending order, and the number of images of each; each (P,)."""
        return np.unique(self.labels[self.labels >= 0], return_counts=True)

    def describe(self, n_classes: int | None) -> list[str]:
        """Returns lines about people, images and bad records. n_classes: number of people as in the file property."""
        labels, counts = self.images_per_person()
        images = quantity(len(self.labels), "image")
        lines = [f"{images} of {quantity(len(labels), 'person', 'people')}, {self.n_bytes.sum() / 1e6:,.1f} MB"]
        if n_classes is not None and n_classes != len(labels):
            people = quantity(n_classes, "person", "people")
            lines.append(f"property: {people}, {n_classes - len(labels):,} of them without images")
        lines += [f"pixels: {format_counts(self.sizes)}", f"formats: {format_counts(self.suffixes)}"]
        lines.append(f"bytes of an image: {format_range(self.n_bytes)}")
        if len(counts):
            lines += [f"images of a person: {format_range(counts)}", *_draw_histogram(counts)]
        few = labels[counts < FEW]
        if len(few):
            shown = ", ".join(map(str, few[:8].tolist())) + ", …" * (len(few) > 8)
            lines.append(f"people with fewer than {FEW} images: {len(few):,} (labels {shown})")
        return [*lines, f"bad records: {len(self.problems):,}"]


def _read(dataset: FaceDataset, key: int) -> _Image:
    try:
        header, content = dataset.reader.read_image(key)
    except UserError as error:
        return _Image(-1, "", "", 0, error.problem.removeprefix(f"{dataset.reader.location(key)}: "))
    label = float(np.ravel(header.label)[0])
    problem = find_problem(content)
    if not (math.isfinite(label) and label.is_integer() and 0 <= label < MAX_CLASSES):
        label, problem = -1, f"label {label:g} is not the number of a class"
    width, height = read_image_size(content) or (0, 0)
    size = f"{width}×{height}" if width * height else ""
    return _Image(int(label), size, find_suffix(content), len(content), problem)


def format_counts(counts: Counter[str]) -> str:
    """Returns the most frequent sizes or formats with their counts, such as "jpg 25, png 14"."""
    shown = [f"{name.removeprefix('.')} {count:,}" for name, count in counts.most_common(8)]
    return ", ".join(shown + ["…"] * (len(counts) > 8)) or "none"


def format_range(values: np.ndarray) -> str:
    """Returns minimum, maximum and median of at least one number."""
    return f"{values.min():,} to {values.max():,}, median {np.median(values):,.0f}"


def _draw_histogram(counts: np.ndarray) -> list[str]:
    """Returns a line for each of the ranges 1, 2–3, 4–7, 8–15, … images: the number of people and a bar."""
    powers = np.frexp(counts)[1] - 1  # n for 2^n to 2^(n+1) - 1 images
    people = np.bincount(powers)
    lines = []
    for n in range(powers.min(), len(people)):
        bar = "█" * math.ceil(_BAR * people[n] / people.max())
        lines.append(f"{f'{1 << n}–{(2 << n) - 1}' if n else '1':>15} {people[n]:>9,} {bar}".rstrip())
    return lines
