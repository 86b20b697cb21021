"""Makes a small set in the layout of IJB-B or IJB-C from drawn people: python data/make_demo_ijb.py [--people N …]

For trying the IJB evaluation without the licensed data. Leaves in --out what InsightFace's distribution has: loose_crop
(photos) and meta (landmarks, templates, pairs, galleries and probes); also people.png (to look at) and made.json (what
it was made of). The same arguments give the same bytes on any number of cores.
"""

import argparse
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

if not __package__:  # run as a script, this folder stands first on the path instead of the repository
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import cv2
import numpy as np
from numpy.random import Generator
from tqdm import tqdm

from data.synthetic.build import check_between, decode, draw_all, encode, make_folder, parse_arguments
from data.synthetic.people import Person
from data.synthetic.photos import Detection, Medium, Template, photo, sample_template
from data.synthetic.procedural import VERSION
from utils.errors import UserError, run_cli

GALLERIES = {"IJBB": ("S1", "S2"), "IJBC": ("G1", "G2")}  # by target, as the two sets name them
SHEET, TILE = 8, 160  # people.png shows this many photos of this many people, each in a square of this many pixels

Pair = tuple[int, int, int]  # a gallery's template, a probe's, and 1 if they are one person's


@dataclass(frozen=True)
class Plan:
    """What is made."""

    target: str = "IJBC"
    people: int = 40
    first: int = 260  # number of the first: after the 200 people to train on and 60 to verify on of make_demo_faces
    probes: int = 3  # templates of each person, beside the one in the gallery
    pairs: int = 20_000  # of different people, or all there are
    seed: int = 0

    def check(self) -> None:
        """Raise UserError for what cannot be made."""
        if self.target not in GALLERIES:
            raise UserError(f"--target {self.target}: should be {' or '.join(GALLERIES)}")
        limits = {"people": (2, 2000), "first": (0, 10**9), "probes": (1, 20), "pairs": (1, 10**7)}
        for name, (low, high) in (limits | {"seed": (0, 2**32 - 1)}).items():
            check_between(f"--{name}", getattr(self, name), low, high)

    @property
    def numbers(self) -> range:
        """The people's numbers, from which they are drawn."""
        return range(self.first, self.first + self.people)


@dataclass(frozen=True)
class Image:
    """One line of the lists."""

    number: int  # of the file
    subject: int
    template: int
    medium: int
    detection: Detection

    @property
    def name(self) -> str:
        """Of the file in loose_crop."""
        return f"{self.number}.jpg"


def sample_person(seed: int, number: int, probes: int) -> tuple[Person, list[Template]]:
    """Draw a person and his templates at random, the gallery's first. The first ones are the same for all `probes`."""
    rng = np.random.default_rng([seed, number])
    return Person.sample(rng), [sample_template(rng) for _ in range(1 + probes)]


def person_photos(seed: int, number: int, probes: int) -> list[bytes]:
    """All photos of a person, template by template, medium by medium."""
    person, templates = sample_person(seed, number, probes)
    return [photo(person, detection) for template in templates for medium in template for detection in medium]


def plan_set(plan: Plan) -> tuple[np.ndarray, list[Image], list[Pair]]:
    """Deal ids to the templates, (people, 1 + probes) with the galleries' first; plan the images and the pairs."""
    rng = np.random.default_rng([plan.seed, plan.first + plan.people])
    templates = _sparse_ids(plan.people * (1 + plan.probes), rng).reshape(plan.people, -1)
    return templates, _plan_images(plan, templates, rng), _plan_pairs(plan, templates, rng)


def _plan_images(plan: Plan, templates: np.ndarray, rng: Generator) -> list[Image]:
    """All images, person by person as `person_photos` draws them; their files and media are numbered at random."""
    media: list[tuple[int, int, Medium]] = []
    for subject, ids in zip(plan.numbers, templates.tolist(), strict=True):
        _, drawn_templates = sample_person(plan.seed, subject, plan.probes)
        for template, its_media in zip(ids, drawn_templates, strict=True):
            media += [(subject, template, medium) for medium in its_media]
    medium_ids = _sparse_ids(len(media), rng).tolist()
    files = iter((1 + rng.permutation(sum(len(medium) for *_, medium in media))).tolist())
    return [
        Image(next(files), subject, template, medium_id, detection)
        for (subject, template, medium), medium_id in zip(media, medium_ids, strict=True)
        for detection in medium
    ]


def _plan_pairs(plan: Plan, templates: np.ndarray, rng: Generator) -> list[Pair]:
    """All pairs of one person and some of the others."""
    others = (plan.people - 1) * plan.probes  # probes of other people, for each template of a gallery
    chosen = rng.choice(plan.people * others, min(plan.pairs, plan.people * others), replace=False)
    me, rest = np.divmod(chosen, others)
    step, probe = np.divmod(rest, plan.probes)
    other = (me + 1 + step) % plan.people
    gallery, probes = templates[:, 0], templates[:, 1:]
    same = zip(gallery.repeat(plan.probes).tolist(), probes.ravel().tolist(), strict=True)
    different = zip(gallery[me].tolist(), probes[other, probe].tolist(), strict=True)
    return sorted([(*pair, 1) for pair in same] + [(*pair, 0) for pair in different])


def _sparse_ids(count: int, rng: Generator) -> np.ndarray:
    """That many different numbers with gaps between them, in no order."""
    return 1 + rng.permutation(10 * count)[:count]


def make(out: Path, plan: Plan, workers: int = 1, force: bool = False) -> bool:
    """Make the set in folder `out` and return True; False where it stands there already, made by the same plan."""
    plan.check()
    made = {"version": VERSION, **asdict(plan)}
    return make_folder(out, made, lambda folder: _write(folder, plan, workers), force)


def _write(folder: Path, plan: Plan, workers: int) -> None:
    templates, images, pairs = plan_set(plan)
    _write_meta(folder / "meta", plan, templates, images, pairs)
    jobs = [(plan.seed, number, plan.probes) for number in plan.numbers]
    with tqdm(total=len(images), unit="face", desc="Drawing", disable=None) as bar:
        sheet = _write_photos(folder / "loose_crop", images, draw_all(person_photos, jobs, workers, bar))
    (folder / "people.png").write_bytes(encode(".png", sheet))


def _write_meta(folder: Path, plan: Plan, templates: np.ndarray, images: list[Image], pairs: list[Pair]) -> None:
    """Write the lists. They have the images in the order of their files, which is none."""
    folder.mkdir()
    prefix = plan.target.lower()
    images = sorted(images, key=lambda image: image.number)
    _write_lines(folder / f"{prefix}_name_5pts_score.txt", map(_detection, images))
    _write_lines(folder / f"{prefix}_face_tid_mid.txt", ((i.name, i.template, i.medium) for i in images))
    _write_lines(folder / f"{prefix}_template_pair_label.txt", pairs)
    half = (plan.people + 1) // 2
    first, second = (f"gallery_{name}" for name in GALLERIES[plan.target])
    for name, ids in {first: templates[:half, 0], second: templates[half:, 0], "probe_mixed": templates[:, 1:]}.items():
        members = set(ids.ravel().tolist())
        rows = ((i.template, i.subject, i.name, i.number) for i in images if i.template in members)
        header = ("TEMPLATE_ID", "SUBJECT_ID", "FILENAME", "SIGHTING_ID")
        _write_lines(folder / f"{prefix}_1N_{name}.csv", [header, *rows], ",")


def _detection(image: Image) -> list[str]:
    """Its file, landmarks and score, as they are written."""
    landmarks = image.detection.landmarks
    numbers = np.stack([landmarks.real, landmarks.imag], 1).ravel()
    return [image.name, *(f"{x:.3f}" for x in numbers), f"{image.detection.score:.4f}"]


def _write_lines(path: Path, rows: Iterable[Iterable[object]], separator: str = " ") -> None:
    path.write_text("".join(separator.join(map(str, row)) + "\n" for row in rows))


def _write_photos(folder: Path, images: list[Image], photos: Iterator[list[bytes]]) -> np.ndarray:
    """Write the photos of each person; returns the sheet of some of the first people."""
    folder.mkdir()
    coming = iter(images)
    rows: list[np.ndarray] = []
    for files in photos:
        of_person = [next(coming) for _ in files]
        for image, file in zip(of_person, files, strict=True):
            (folder / image.name).write_bytes(file)
        if len(rows) < SHEET:
            shown = np.linspace(0, len(files) - 1, SHEET).astype(int)
            rows.append(np.hstack([_tile(decode(files[i]), of_person[i].detection.landmarks) for i in shown]))
    return np.vstack(rows)


def _tile(image: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """The photo with its landmarks, made to fit on a square of white."""
    for point in landmarks:
        cv2.circle(image, (round(point.real), round(point.imag)), 3, (0, 255, 0), -1, cv2.LINE_AA)
    height, width = (side * (TILE - 4) // max(image.shape) for side in image.shape[:2])
    top, left = (TILE - height) // 2, (TILE - width) // 2
    tile = np.full((TILE, TILE, 3), 255, np.uint8)
    tile[top : top + height, left : left + width] = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    return tile


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Make a small set in the layout of IJB-B or IJB-C from drawn people.")
    parser.add_argument("--out", type=Path, default=Path("data/ijb_demo"), help="folder to make (%(default)s)")
    parser.add_argument("--target", default=Plan.target, help="whose file names: IJBB or IJBC (%(default)s)")
    parser.add_argument("--people", type=int, default=Plan.people, help="people, half in each gallery (%(default)s)")
    parser.add_argument("--first", type=int, default=Plan.first, help="number of the first of them (%(default)s)")
    parser.add_argument("--probes", type=int, default=Plan.probes, help="probe templates of each (%(default)s)")
    parser.add_argument("--pairs", type=int, default=Plan.pairs, help="pairs of different people (%(default)s)")
    args = parse_arguments(parser, Plan.seed)
    plan = Plan(args.target, args.people, args.first, args.probes, args.pairs, args.seed)
    if make(args.out, plan, args.workers, args.force):
        lines = (args.out / "meta" / f"{plan.target.lower()}_face_tid_mid.txt").read_text().count("\n")
        print(f"{args.out}: {plan.people} people in {lines} images and {plan.people * (1 + plan.probes)} templates")
    else:
        print(f"{args.out}: made already, nothing to do; --force makes it anew")


if __name__ == "__main__":
    run_cli(main)
