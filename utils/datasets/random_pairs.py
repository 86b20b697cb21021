"""Draws pairs of photos for verification, of one person and of two."""

import itertools
from collections.abc import Hashable, Iterator, Sequence
from typing import TypeVar

import numpy as np

Photo = TypeVar("Photo", bound=Hashable)
Pair = tuple[Photo, Photo, bool]  # the flag: whether both show the same person


def draw_pairs(people: Sequence[Sequence[Photo]], n_pairs: int, seed: int) -> list[Pair[Photo]]:
    """Draws distinct pairs (photo, photo, same person) of the people's photos; equal seeds draw equal pairs.

    Half of the pairs are of one person. They are taken from the people in turn, in random order, so that people with
    many photos do not outweigh the others. The other half are of two people drawn at random. If there are fewer pairs
    of a kind than requested, all of that kind are taken. The kinds alternate, so that every fold has both.
    """
    rng = np.random.default_rng(seed)
    people = [people[i] for i in rng.permutation(len(people))]
    same = _same_pairs(people, n_pairs // 2, rng)
    different = _different_pairs(people, n_pairs - n_pairs // 2, rng)
    alternating = itertools.chain.from_iterable(itertools.zip_longest(same, different))
    return [pair for pair in alternating if pair]


def count_different_pairs(people: Sequence[Sequence[Photo]]) -> int:
    """Returns the number of possible pairs of photos of different people."""
    counts = np.array([len(photos) for photos in people])
    return int((counts.sum() ** 2 - (counts**2).sum()) // 2)


def _same_pairs(people: Sequence[Sequence[Photo]], n: int, rng: np.random.Generator) -> list[Pair[Photo]]:
    """Draws up to n distinct pairs of one person, from the people in turn."""

    def pairs_of_person(photos: Sequence[Photo]) -> Iterator[Pair[Photo]]:
        combinations = len(photos) * (len(photos) - 1) // 2
        for k in rng.choice(combinations, min(n, combinations), replace=False) if combinations else []:
            high = int((1 + (1 + 8 * int(k)) ** 0.5) / 2)  # pair k of (low, high), high > low, numbered row by row
            yield photos[int(k) - high * (high - 1) // 2], photos[high], True

    in_turn = itertools.chain.from_iterable(itertools.zip_longest(*map(pairs_of_person, people)))
    return list(itertools.islice((pair for pair in in_turn if pair), n))


def _different_pairs(people: Sequence[Sequence[Photo]], n: int, rng: np.random.Generator) -> list[Pair[Photo]]:
    """Draws up to n distinct pairs of two people."""
    counts = np.array([len(photos) for photos in people])
    if count_different_pairs(people) <= 2 * n:  # too few: random draws would mostly repeat
        candidates = [(a, b) for photos, others in itertools.combinations(people, 2) for a in photos for b in others]
        return [(*candidates[i], False) for i in rng.permutation(len(candidates))[:n]]
    drawn: dict[tuple[Photo, Photo], None] = {}
    while len(drawn) < n:
        first, second = sorted(rng.choice(len(people), 2, replace=False))
        photos = people[first][rng.integers(counts[first])], people[second][rng.integers(counts[second])]
        drawn.setdefault(photos)
    return [(*photos, False) for photos in drawn]
