"""Makes a dataset of synthetic faces to try PocketNet on: python data/make_demo_faces.py [--people N …]

Writes to --out, in the layout of MS1MV2: train.rec, train.idx and property (training images), demo.bin (verification
pairs of other people), people.png (some of the images, to look at) and made.json (the settings). The same arguments
give the same bytes on any number of cores.
"""

import argparse
import pickle
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

if not __package__:  # run as a script: put the repository first on the path, not this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import cv2
import numpy as np
from tqdm import tqdm

from data.synthetic.build import check_between, decode, draw_all, encode, make_folder, parse_arguments
from data.synthetic.canvas import SIZE
from data.synthetic.people import Person, Shot
from data.synthetic.procedural import VERSION, draw
from utils.datasets.recordio.record_format import IndexedRecordWriter, RecordHeader, pack
from utils.errors import UserError, run_cli

FOLDS = 10
QUALITY = 95  # JPEG quality
SHEET_SIZE = 8  # people.png shows this many shots of this many people
LOOKALIKES = 4  # a pair of different people is the most similar of this many random pairs

Pair = tuple[int, int]  # numbers of two people


@dataclass(frozen=True)
class Plan:
    """The settings of the dataset. made.json holds these fields."""

    people: int = 200
    shots: int = 20  # images per person
    test_people: int = 60  # people to verify on, none of them trained on
    pairs: int = 1500
    seed: int = 0
    nuisance: float = 1.0  # factor of what pose, light and camera change in a photo; above 1 the photos are harder

    def check(self) -> None:
        """Raises UserError for settings that are out of range."""
        limits = {"people": (2, 100_000), "shots": (1, 10_000), "test_people": (2, 100_000), "pairs": (20, 100_000)}
        for name, (low, high) in (limits | {"seed": (0, 2**32 - 1)}).items():
            check_between(f"--{name.replace('_', '-')}", getattr(self, name), low, high)
        if self.pairs % (2 * FOLDS):
            raise UserError(
                f"--pairs {self.pairs}: should be a multiple of {2 * FOLDS}: {FOLDS} folds, half same, half different"
            )
        if not 0 <= self.nuisance <= 3:
            raise UserError(f"--nuisance {self.nuisance}: should be from 0 to 3")
        if self.people * self.shots + self.people >= 2**24:
            raise UserError(
                f"--people {self.people} --shots {self.shots}: more than the 2^24 keys a record file can label"
            )


def person_photos(seed: int, number: int, shots: int, nuisance: float = 1.0) -> list[bytes]:
    """Draws `shots` images of a person, as JPEG files. The first ones do not depend on the number of shots."""
    rng = np.random.default_rng([seed, number])
    person = Person.sample(rng)
    samples = (Shot.sample(rng) for _ in range(shots))
    photos = (draw(person, shot if nuisance == 1 else shot.exaggerate(nuisance)) for shot in samples)
    return [encode(".jpg", photo, cv2.IMWRITE_JPEG_QUALITY, QUALITY) for photo in photos]


def plan_pairs(plan: Plan) -> tuple[list[Pair], list[bool]]:
    """Returns the two people of each pair, and whether they are the same person.

    Same and different pairs alternate, so that every fold has equally many of both.
    """
    rng = np.random.default_rng([plan.seed, plan.people + plan.test_people])
    numbers = range(plan.people, plan.people + plan.test_people)
    appearances = [_appearance(Person.sample(np.random.default_rng([plan.seed, number]))) for number in numbers]
    pairs: list[Pair] = []
    for i in range(plan.pairs // 2):
        person = i % plan.test_people
        steps = rng.integers(1, plan.test_people, LOOKALIKES)
        others = [(person + int(step)) % plan.test_people for step in steps]
        other = min(others, key=lambda other: float(np.linalg.norm(appearances[person] - appearances[other])))
        pairs += [(numbers[person], numbers[person]), (numbers[person], numbers[other])]
    return pairs, [True, False] * (plan.pairs // 2)


def make(out: Path, plan: Plan, workers: int = 1, force: bool = False) -> bool:
    """Makes the dataset in folder `out`. Returns False where it exists, made with the same plan, else True.

    Raises UserError where `out` holds anything else, or cannot be written.
    """
    plan.check()
    settings = {"version": VERSION, **asdict(plan)}
    if plan.nuisance == 1:
        del settings["nuisance"]  # sets made before there was this setting stay valid
    return make_folder(out, settings, lambda folder: _write(folder, plan, workers), force)


def _write(folder: Path, plan: Plan, workers: int) -> None:
    pairs, same = plan_pairs(plan)
    members = [number for pair in pairs for number in pair]
    shots_of = dict.fromkeys(range(plan.people), plan.shots)
    shots_of |= {plan.people + i: members.count(plan.people + i) for i in range(plan.test_people)}
    jobs = [(plan.seed, number, shots, plan.nuisance) for number, shots in shots_of.items()]
    total = sum(shots_of.values())
    with tqdm(total=total, unit="face", desc="Drawing", disable=None) as bar:
        photos = draw_all(person_photos, jobs, workers, bar)
        sheet = _write_training(folder, plan, islice(photos, plan.people))
        unused = {plan.people + i: iter(shots) for i, shots in enumerate(photos)}
    images = [next(unused[number]) for number in members]
    (folder / "demo.bin").write_bytes(pickle.dumps((images, same), protocol=4))
    (folder / "people.png").write_bytes(encode(".png", sheet))


def _write_training(folder: Path, plan: Plan, photos: Iterator[list[bytes]]) -> np.ndarray:
    """Writes train.rec, train.idx and property. Returns the image of the first shots of the first people."""
    end = plan.people * plan.shots + 1  # end of the image keys, which begin at 1
    rows = []
    with IndexedRecordWriter(folder / "train.rec", folder / "train.idx") as writer:
        writer.write(0, pack(RecordHeader(2, np.array([end, end + plan.people]), 0, 0), b""))
        key = 1
        for label, shots in enumerate(photos):
            for shot in shots:
                writer.write(key, pack(RecordHeader(0, float(label), key, 0), shot))
                key += 1
            if label < SHEET_SIZE:
                rows.append(np.hstack([decode(shot) for shot in shots[:SHEET_SIZE]]))
        for label in range(plan.people):
            start = 1 + label * plan.shots
            writer.write(end + label, pack(RecordHeader(2, np.array([start, start + plan.shots]), end + label, 0), b""))
    (folder / "property").write_text(f"{plan.people},{SIZE},{SIZE}\n")
    return np.vstack(rows)


def _appearance(person: Person) -> np.ndarray:
    """Returns a vector of colours and hair, in comparable units, to pair people who look alike."""
    return np.array([*person.skin, *person.hair, 60 * (person.hair_end > 0), 60 * person.bald, 60 * person.beard])


def main() -> None:
    """Parses the command line and makes the dataset."""
    parser = argparse.ArgumentParser(description="Make a dataset of synthetic faces.")
    parser.add_argument("--out", type=Path, default=Path("data/faces_demo"), help="folder to write (%(default)s)")
    parser.add_argument("--people", type=int, default=Plan.people, help="people to train on (%(default)s)")
    parser.add_argument("--shots", type=int, default=Plan.shots, help="images per person (%(default)s)")
    parser.add_argument(
        "--test-people", type=int, default=Plan.test_people, help="other people to verify on (%(default)s)"
    )
    parser.add_argument("--pairs", type=int, default=Plan.pairs, help="verification pairs of these (%(default)s)")
    parser.add_argument(
        "--nuisance", type=float, default=Plan.nuisance,
        help="factor of pose, light, blur and noise; above 1 the photos are harder (%(default)s)",
    )  # fmt: skip
    args = parse_arguments(parser, Plan.seed)
    plan = Plan(args.people, args.shots, args.test_people, args.pairs, args.seed, args.nuisance)
    if make(args.out, plan, args.workers, args.force):
        print(f"{args.out}: {plan.people} people in {plan.people * plan.shots} images, {plan.pairs} pairs of others")
    else:
        print(f"{args.out}: exists already, nothing to do; --force makes it again")


if __name__ == "__main__":
    run_cli(main)
