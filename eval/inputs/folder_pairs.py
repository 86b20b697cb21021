"""Makes pairs of the photos in a folder that has one folder per person."""

from operator import itemgetter
from pathlib import Path

from eval.inputs.pairs import PhotoPairs
from utils.datasets.people_folder import list_people
from utils.datasets.photos import IMAGE_SUFFIXES
from utils.datasets.random_pairs import Pair, count_different_pairs, draw_pairs
from utils.errors import UserError, one_line, quantity
from utils.filesystem import path_exists


def make_pairs(folder: Path, n_pairs: int, seed: int) -> PhotoPairs:
    """Makes distinct pairs of the photos in a folder that has one folder per person; equal seeds make equal pairs.

    `list_people` lists the photos, `draw_pairs` draws the pairs. The notes count the files that are left out.

    Raises UserError if there are fewer than two people, or nobody has two photos.
    """
    if not path_exists(folder.is_dir):
        raise UserError(f"--folder {folder}: no such folder")
    try:
        photos_of, notes = list_people(folder, IMAGE_SUFFIXES)
    except OSError as error:
        raise UserError(f"--folder {one_line(error.filename)}: {error.strerror}") from None
    people = list(photos_of.values())
    if len(people) < 2 or all(len(photos) < 2 for photos in people):
        raise UserError(
            f"--folder {folder}: {quantity(len(people), 'folder')} with photos",
            fix="expected one folder per person, at least two "
            f"people, and at least two photos of one of them{''.join(f' ({note})' for note in notes)}",
        )
    pairs = _spread(draw_pairs(people, n_pairs, seed))
    return PhotoPairs.from_pairs(folder.resolve().name, pairs, notes, count_different_pairs(people))


def _spread(pairs: list[Pair[Path]]) -> list[Pair[Path]]:
    """Returns the pairs, each kind spread evenly, so that every fold has its share of both; equal counts alternate."""
    kinds = [[pair for pair in pairs if pair[2] is same] for same in (True, False)]
    placed = [((i + 0.5) / len(kind), pair) for kind in kinds for i, pair in enumerate(kind)]
    return [pair for _, pair in sorted(placed, key=itemgetter(0))]
