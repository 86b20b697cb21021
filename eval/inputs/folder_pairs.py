"""Makes pairs of the photos in a folder that has one folder per person."""

import itertools
from collections import Counter
from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path

import numpy as np

from eval.inputs.pairs import Pair, PhotoPairs
from utils.datasets.photos import CONVERT_HEIC, HEIC_SUFFIXES, IMAGE_SUFFIXES
from utils.errors import UserError, one_line
from utils.filesystem import path_exists


def make_pairs(folder: Path, n_pairs: int, seed: int) -> PhotoPairs:
    """Makes distinct pairs of the photos in a folder that has one folder per person; equal seeds make equal pairs.

    Half of the pairs are of one person. They are taken from the people in turn, in random order, so that people with
    many photos do not outweigh the others. The other half are of two people drawn at random. If there are fewer pairs
    of a kind than requested, all of that kind are taken. Hidden files and folders are ignored; other files that are not
    photos are left out and counted in the notes.

    Raises UserError if there are fewer than two people, or nobody has two photos.
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
            f"--folder {folder}: {len(people)} folders with photos",
            fix="expected one folder per person, at least two "
            f"people, and at least two photos of one of them{''.join(f' ({note})' for note in notes)}",
        )
    rng = np.random.default_rng(seed)
    people = [people[i] for i in rng.permutation(len(people))]
    same = _same_pairs(people, n_pairs // 2, rng)
    different = _different_pairs(people, n_pairs - n_pairs // 2, rng)
    return PhotoPairs.from_pairs(folder.resolve().name, _spread([*same, *different]), notes, _count_different(people))


def _folders(folder: Path, left_out: Counter[str]) -> list[Path]:
    """Returns the people's folders. Counts other files in `left_out`."""
    people = []
    for path in _visible_entries(folder):
        if path.is_dir():
            people.append(path)
        else:
            left_out[_kind(path) + " outside the people's folders"] += 1
    return people


def _photos(folder: Path, left_out: Counter[str]) -> list[Path]:
    """Returns the photos of a person's folder. Counts other files in `left_out`."""
    photos = []
    for path in _visible_entries(folder):
        if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file():
            photos.append(path)
        else:
            left_out[_kind(path)] += 1
    return photos


def _kind(path: Path) -> str:
    """Returns the kind of a file that is left out: its suffix in most cases."""
    if path.is_dir():
        return "folders in a person's folder"
    return one_line(path.suffix.lower())[:20] or "without a suffix"


def _describe(folder: Path, left_out: Counter[str]) -> tuple[str, ...]:
    """Returns a note on the files that were left out, or () if there were none."""
    if not left_out:
        return ()
    kinds = [f"{count} {kind}" for kind, count in left_out.most_common()]
    shown = kinds if len(kinds) <= 8 else [*kinds[:7], f"{len(kinds) - 7} other kinds"]
    total = left_out.total()
    note = f"{one_line(folder)}: {total} {'file' if total == 1 else 'files'} left out: {', '.join(shown)}"
    is_heic = any(kind.startswith(suffix) for suffix in HEIC_SUFFIXES for kind in left_out)
    return (f"{note}. {CONVERT_HEIC}" if is_heic else note,)


def _count_different(people: list[list[Path]]) -> int:
    """Returns the number of possible pairs of photos of different people."""
    counts = np.array([len(photos) for photos in people])
    return int((counts.sum() ** 2 - (counts**2).sum()) // 2)


def _visible_entries(folder: Path) -> list[Path]:
    """Returns a folder's files and folders, sorted, without hidden ones such as the ._photo.jpg files of macOS."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _same_pairs(people: list[list[Path]], n: int, rng: np.random.Generator) -> list[Pair]:
    """Draws up to n distinct pairs of one person, from the people in turn."""

    def pairs_of_person(photos: list[Path]) -> Iterator[Pair]:
        combinations = len(photos) * (len(photos) - 1) // 2
        for k in rng.choice(combinations, min(n, combinations), replace=False) if combinations else []:
            high = int((1 + (1 + 8 * int(k)) ** 0.5) / 2)  # pair k of (low, high), high > low, numbered row by row
            yield photos[int(k) - high * (high - 1) // 2], photos[high], True

    in_turn = itertools.chain.from_iterable(itertools.zip_longest(*map(pairs_of_person, people)))
    return list(itertools.islice((pair for pair in in_turn if pair), n))


def _spread(pairs: list[Pair]) -> list[Pair]:
    """Returns the pairs, each kind spread evenly, so that every fold has its share of both; equal counts alternate."""
    kinds = [[pair for pair in pairs if pair[2] is same] for same in (True, False)]
    placed = [((i + 0.5) / len(kind), pair) for kind in kinds for i, pair in enumerate(kind)]
    return [pair for _, pair in sorted(placed, key=itemgetter(0))]


def _different_pairs(people: list[list[Path]], n: int, rng: np.random.Generator) -> list[Pair]:
    """Draws up to n distinct pairs of two people."""
    counts = np.array([len(photos) for photos in people])
    if _count_different(people) <= 2 * n:  # too few: random draws would mostly repeat
        candidates = [(a, b) for photos, others in itertools.combinations(people, 2) for a in photos for b in others]
        return [(*candidates[i], False) for i in rng.permutation(len(candidates))[:n]]
    drawn: dict[tuple[Path, Path], None] = {}
    while len(drawn) < n:
        first, second = sorted(rng.choice(len(people), 2, replace=False))
        photos = people[first][rng.integers(counts[first])], people[second][rng.integers(counts[second])]
        drawn.setdefault(photos)
    return [(*photos, False) for photos in drawn]
