"""Makes pairs of the photos in a folder that has one folder per person."""

from collections import Counter
from operator import itemgetter
from pathlib import Path

from eval.inputs.pairs import PhotoPairs
from utils.datasets.photos import CONVERT_HEIC, HEIC_SUFFIXES, IMAGE_SUFFIXES
from utils.datasets.random_pairs import Pair, count_different_pairs, draw_pairs
from utils.errors import UserError, one_line
from utils.filesystem import path_exists


def make_pairs(folder: Path, n_pairs: int, seed: int) -> PhotoPairs:
    """Makes distinct pairs of the photos in a folder that has one folder per person; equal seeds make equal pairs.

    `draw_pairs` draws them. Hidden files and folders are ignored; other files that are not photos are left out and
    counted in the notes.

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
    pairs = _spread(draw_pairs(people, n_pairs, seed))
    return PhotoPairs.from_pairs(folder.resolve().name, pairs, notes, count_different_pairs(people))


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


def _spread(pairs: list[Pair[Path]]) -> list[Pair[Path]]:
    """Returns the pairs, each kind spread evenly, so that every fold has its share of both; equal counts alternate."""
    kinds = [[pair for pair in pairs if pair[2] is same] for same in (True, False)]
    placed = [((i + 0.5) / len(kind), pair) for kind in kinds for i, pair in enumerate(kind)]
    return [pair for _, pair in sorted(placed, key=itemgetter(0))]


def _visible_entries(folder: Path) -> list[Path]:
    """Returns a folder's files and folders, sorted, without hidden ones such as the ._photo.jpg files of macOS."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
