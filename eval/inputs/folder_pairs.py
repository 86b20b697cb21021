"""Pairs made of the photos in a folder that holds a folder for each person."""

import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from eval.inputs.pairs import Pair, PhotoPairs
from eval.inputs.photos import CONVERT_HEIC, HEIC_SUFFIXES, IMAGE_SUFFIXES
from utils.errors import UserError, one_line
from utils.filesystem import path_exists


def make_pairs(folder: Path, n_pairs: int, seed: int) -> PhotoPairs:
    """Pairs of the photos in a folder that holds a folder for each person, no pair twice; the same for the same seed.

    Half are of one person, people taken by turns, in an order drawn at random, so that those of many photos do not
    outweigh the others; half are of two people drawn at random. Where there are fewer pairs of a kind than asked for,
    all of that kind are taken. Hidden files and folders are left out, and what is no photo, which the notes count.

    Raises UserError where there are not two people, or nobody has two photos.
    """
    if not path_exists(folder.is_dir):
        raise UserError(f"--folder {folder}: no such folder")
    left_out: Counter[str] = Counter()
    try:
        people = [photos for person in _folders(folder, left_out) if (photos := _photos(person, left_out))]
    except OSError as error:
        raise UserError(f"--folder {one_line(error.filename)}: {error.strerror}") from None
    notes = _describe(folder, left_out)
    if len(people) < 2 or all(len(photos) < 2 for photos in people):
        raise UserError(
            f"--folder {folder}: {len(people)} folders with photos; it should hold one a person, two people at least, "
            f"and two photos of somebody{''.join(f' ({note})' for note in notes)}"
        )
    rng = np.random.default_rng(seed)
    people = [people[i] for i in rng.permutation(len(people))]
    same = _same_pairs(people, n_pairs // 2, rng)
    different = _different_pairs(people, n_pairs - n_pairs // 2, rng)
    mixed = itertools.chain.from_iterable(itertools.zip_longest(same, different))  # both kinds in every fold
    pairs = [pair for pair in mixed if pair]
    return PhotoPairs.of(folder.resolve().name, pairs, notes, _count_different(people))


def _folders(folder: Path, left_out: Counter[str]) -> list[Path]:
    """The people's folders; files beside them are counted as left out."""
    people = []
    for path in _shown(folder):
        if path.is_dir():
            people.append(path)
        else:
            left_out[_kind(path) + " outside the people's folders"] += 1
    return people


def _photos(folder: Path, left_out: Counter[str]) -> list[Path]:
    photos = []
    for path in _shown(folder):
        if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file():
            photos.append(path)
        else:
            left_out[_kind(path)] += 1
    return photos


def _kind(path: Path) -> str:
    if path.is_dir():
        return "folders in a person's folder"
    return one_line(path.suffix.lower())[:20] or "without a suffix"


def _describe(folder: Path, left_out: Counter[str]) -> tuple[str, ...]:
    """What was left out, in words; nothing where nothing was."""
    if not left_out:
        return ()
    kinds = [f"{count} {kind}" for kind, count in left_out.most_common()]
    shown = kinds if len(kinds) <= 8 else [*kinds[:7], f"{len(kinds) - 7} other kinds"]
    total = left_out.total()
    note = f"{one_line(folder)}: {total} {'file' if total == 1 else 'files'} left out: {', '.join(shown)}"
    is_heic = any(kind.startswith(suffix) for suffix in HEIC_SUFFIXES for kind in left_out)
    return (f"{note}. {CONVERT_HEIC}" if is_heic else note,)


def _count_different(people: list[list[Path]]) -> int:
    """How many pairs there are of photos of two people."""
    counts = np.array([len(photos) for photos in people])
    return int((counts.sum() ** 2 - (counts**2).sum()) // 2)


def _shown(folder: Path) -> list[Path]:
    """What is in a folder but for hidden things, such as the ._photo.jpg that other systems leave beside a photo."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _same_pairs(people: list[list[Path]], n: int, rng: np.random.Generator) -> list[Pair]:
    def of_one(photos: list[Path]) -> Iterator[Pair]:
        combinations = len(photos) * (len(photos) - 1) // 2
        for k in rng.choice(combinations, min(n, combinations), replace=False) if combinations else []:
            high = int((1 + (1 + 8 * int(k)) ** 0.5) / 2)  # the k-th pair: high > low, counted row by row
            yield photos[int(k) - high * (high - 1) // 2], photos[high], True

    by_turns = itertools.chain.from_iterable(itertools.zip_longest(*map(of_one, people)))
    return list(itertools.islice((pair for pair in by_turns if pair), n))


def _different_pairs(people: list[list[Path]], n: int, rng: np.random.Generator) -> list[Pair]:
    counts = np.array([len(photos) for photos in people])
    if _count_different(people) <= 2 * n:  # too few to find unused ones by chance
        every = [(a, b) for one, other in itertools.combinations(people, 2) for a in one for b in other]
        return [(*every[i], False) for i in rng.permutation(len(every))[:n]]
    found: dict[tuple[Path, Path], None] = {}
    while len(found) < n:
        one, other = sorted(rng.choice(len(people), 2, replace=False))
        photos = people[one][rng.integers(counts[one])], people[other][rng.integers(counts[other])]
        found.setdefault(photos)
    return [(*photos, False) for photos in found]
