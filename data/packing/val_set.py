"""Holds people out of training, and writes pairs of their photos as a verification set."""

import pickle
from pathlib import Path

import numpy as np

from data.packing.photo import Photo
from data.packing.sources import People
from utils.datasets.random_pairs import Pair, draw_pairs
from utils.errors import UserError, quantity

_UNIT = 20  # pairs: one of each kind in each of the ten folds


def split_people(people: People, fraction: float, seed: int) -> tuple[People, People]:
    """Returns the people to train on and those held out, at least two, drawn at random; both in the order of `people`.

    Raises UserError where fewer than two would be left to train on.
    """
    n_val = max(2, round(fraction * len(people))) if fraction else 0
    if len(people) - n_val < 2:
        raise UserError(
            f"--val {fraction}: holds out {n_val} of {len(people)} people", fix="training needs at least two others"
        )
    drawn = {*np.random.default_rng(seed).permutation(len(people))[:n_val].tolist()}
    train, val = (
        {name: people[name] for i, name in enumerate(people) if (i in drawn) == held} for held in (False, True)
    )
    return train, val


def draw_val_pairs(people: People, n_pairs: int, seed: int) -> list[Pair[Photo]]:
    """Draws up to n_pairs pairs of photos, as many of one person as of two, in turn, equally many in each of ten folds.

    Raises UserError where the photos make too few.
    """
    pairs = draw_pairs(list(people.values()), n_pairs, seed)
    n_same = sum(same for *_, same in pairs)
    n = 2 * min(n_same, len(pairs) - n_same) // _UNIT * _UNIT
    if not n:
        raise UserError(
            f"--val: the {len(people)} people held out make {quantity(n_same, 'pair')} of one person and "
            f"{len(pairs) - n_same} of two, but {_UNIT // 2} of each are needed",
            fix="hold out more of them",
        )
    return pairs[:n]


def write_val_set(path: Path, pairs: list[Pair[Photo]]) -> None:
    """Writes the encoded images and the flags as a pickle. Raises as `Photo.read_face` does."""
    faces = {photo: photo.read_face() for photo in dict.fromkeys(photo for pair in pairs for photo in pair[:2])}
    images = [faces[photo] for pair in pairs for photo in pair[:2]]  # pickle stores a face of several pairs once
    with path.open("wb") as file:
        pickle.dump((images, [same for *_, same in pairs]), file, protocol=4)
