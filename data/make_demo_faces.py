"""Makes a data set of synthetic faces to try PocketNet on: python data/make_demo_faces.py [--people N …]

Leaves in --out, in the layout of MS1MV2: train.rec, train.idx and property (training images), demo.bin (pairs of other
people to verify on), people.png (to look at) and made.json (what it was made of). The same arguments give the same
bytes on any number of cores.
"""

import argparse
import pickle
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

if not __package__:  # run as a script, this folder stands first on the path instead of the repository
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import cv2
import numpy as np
from tqdm import tqdm

from data.synthetic.build import check_between, decode, draw_all, encode, make_folder, parse_arguments
from data.synthetic.canvas import SIZE
from data.synthetic.people import Person, Shot
from data.synthetic.procedural import VERSION, draw
from utils.datasets.recordio.record_format import Header, IndexedRecordWriter, pack
from utils.errors import UserError, run_cli

FOLDS = 10
QUALITY = 95  # of the JPEG files
SHEET = 8  # people.png shows this many shots of this many people
LOOKALIKES = 4  # a pair of different people is the most alike of this many

Pair = tuple[int, int]  # of people


@dataclass(frozen=True)
class Plan:
    """What is made."""

    people: int = 200
    shots: int = 20  # of each of the people
    test_people: int = 60  # others than those
    pairs: int = 1500
    seed: int = 0

    def check(self) -> None:
        """Raise UserError for what cannot be made."""
        limits = {"people": (2, 100_000), "shots": (1, 10_000), "test_people": (2, 100_000), "pairs": (20, 100_000)}
        for name, (low, high) in (limits | {"seed": (0, 2**32 - 1)}).items():
            check_between(f"--{name.replace('_', '-')}", getattr(self, name), low, high)
        if self.pairs % (2 * FOLDS):
            raise UserError(
                f"--pairs {self.pairs}: should be a multiple of {2 * FOLDS}: {FOLDS} folds, half of each same"
            )
        if self.people * self.shots + self.people >= 2**24:
            raise UserError(
                f"--people {self.people} --shots {self.shots}: more than the 2^24 keys a record file can label"
            )


def person_photos(seed: int, number: int, shots: int) -> list[bytes]:
    """Draw that many shots of a person, as JPEG files. The first ones are the same however many there are."""
    rng = np.random.default_rng([seed, number])
    person = Person.sample(rng)
    photos = (draw(person, Shot.sample(rng)) for _ in range(shots))
    return [encode(".jpg", photo, cv2.IMWRITE_JPEG_QUALITY, QUALITY) for photo in photos]


def plan_pairs(plan: Plan) -> tuple[list[Pair], list[bool]]:
    """Choose who is in each pair, and whether it is one person: by turns, so every fold has as many of both kinds."""
    rng = np.random.default_rng([plan.seed, plan.people + plan.test_people])
    numbers = range(plan.people, plan.people + plan.test_people)
    looks = [_looks(Person.sample(np.random.default_rng([plan.seed, number]))) for number in numbers]
    pairs: list[Pair] = []
    for i in range(plan.pairs // 2):
        me = i % plan.test_people
        others = [(me + int(step)) % plan.test_people for step in rng.integers(1, plan.test_people, LOOKALIKES)]
        other = min(others, key=lambda other: float(np.linalg.norm(looks[me] - looks[other])))
        pairs += [(numbers[me], numbers[me]), (numbers[me], numbers[other])]
    return pairs, [True, False] * (plan.pairs // 2)


def make(out: Path, plan: Plan, workers: int = 1, force: bool = False) -> bool:
    """Make the data set in folder `out` and return True; False where it stands there already, made by the same plan."""
    plan.check()
    made = {"version": VERSION, **asdict(plan)}
    return make_folder(out, made, lambda folder: _write(folder, plan, workers), force)


def _write(folder: Path, plan: Plan, workers: int) -> None:
    pairs, same = plan_pairs(plan)
    members = [number for pair in pairs for number in pair]
    jobs = [(plan.seed, number, plan.shots) for number in range(plan.people)]
    jobs += [(plan.seed, plan.people + i, members.count(plan.people + i)) for i in range(plan.test_people)]
    total = sum(shots for *_, shots in jobs)
    with tqdm(total=total, unit="face", desc="Drawing", disable=None) as bar:
        photos = draw_all(person_photos, jobs, workers, bar)
        sheet = _write_training(folder, plan, islice(photos, plan.people))
        unused = {plan.people + i: iter(shots) for i, shots in enumerate(photos)}
    images = [next(unused[number]) for number in members]
    (folder / "demo.bin").write_bytes(pickle.dumps((images, same), protocol=4))
    (folder / "people.png").write_bytes(encode(".png", sheet))


def _write_training(folder: Path, plan: Plan, photos: Iterator[list[bytes]]) -> np.ndarray:
    """Write train.rec, train.idx and property; returns the sheet of the first shots of the first people."""
    end = plan.people * plan.shots + 1  # of the images' keys, which begin at 1
    rows = []
    with IndexedRecordWriter(folder / "train.rec", folder / "train.idx") as writer:
        writer.write(0, pack(Header(2, np.array([end, end + plan.people]), 0, 0), b""))
        key = 1
        for label, shots in enumerate(photos):
            for shot in shots:
                writer.write(key, pack(Header(0, float(label), key, 0), shot))
                key += 1
            if label < SHEET:
                rows.append(np.hstack([decode(shot) for shot in shots[:SHEET]]))
        for label in range(plan.people):
            start = 1 + label * plan.shots
            writer.write(end + label, pack(Header(2, np.array([start, start + plan.shots]), end + label, 0), b""))
    (folder / "property").write_text(f"{plan.people},{SIZE},{SIZE}\n")
    return np.vstack(rows)


def _looks(person: Person) -> np.ndarray:
    """What the eye sees first, to pair people who look alike: colours and hair, comparable in size."""
    return np.array([*person.skin, *person.hair, 60 * (person.hair_end > 0), 60 * person.bald, 60 * person.beard])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Make a data set of synthetic faces.")
    parser.add_argument("--out", type=Path, default=Path("data/faces_demo"), help="folder to make (%(default)s)")
    parser.add_argument("--people", type=int, default=Plan.people, help="people to train on (%(default)s)")
    parser.add_argument("--shots", type=int, default=Plan.shots, help="images of each (%(default)s)")
    parser.add_argument("--test-people", type=int, default=Plan.test_people, help="others to verify on (%(default)s)")
    parser.add_argument("--pairs", type=int, default=Plan.pairs, help="pairs of these (%(default)s)")
    args = parse_arguments(parser, Plan.seed)
    plan = Plan(args.people, args.shots, args.test_people, args.pairs, args.seed)
    if make(args.out, plan, args.workers, args.force):
        print(f"{args.out}: {plan.people} people in {plan.people * plan.shots} images, {plan.pairs} pairs of others")
    else:
        print(f"{args.out}: made already, nothing to do; --force makes it anew")


if __name__ == "__main__":
    run_cli(main)
