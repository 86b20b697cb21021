"""Makes a small synthetic evaluation set in the layout of IJB-B or IJB-C: python data/make_demo_ijb.py [--people N …]

For trying the IJB evaluation without the licensed data. Writes to --out the folders of InsightFace's distribution:
loose_crop (photos) and meta (landmarks, templates, pairs, galleries and probes); also people.png (some of the photos,
to look at) and made.json (the settings). The same arguments give the same bytes on any number of cores.
"""

import argparse
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

if not __package__:  # run as a script: put the repository first on the path, not this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import cv2
import numpy as np
from numpy.random import Generator
from tqdm import tqdm

from data.synthetic.build import check_between, decode, draw_all, encode, make_folder, parse_arguments
from data.synthetic.people import Person
from data.synthetic.photos import Detection, Medium, Template, render_photo, sample_template
from data.synthetic.procedural import VERSION
from utils.errors import UserError, run_cli

GALLERIES = {"IJBB": ("S1", "S2"), "IJBC": ("G1", "G2")}  # gallery names by target, as in the licensed sets
SHEET_SIZE, TILE_SIZE = 8, 160  # people.png shows 8 photos of 8 people, each in a square of 160×160 pixels

Pair = tuple[int, int, int]  # template of a gallery, template of a probe, 1 for the same person else 0


@dataclass(frozen=True)
class Plan:
    """The settings of the set. made.json holds these fields."""

    target: str = "IJBC"
    people: int = 40
    first: int = 260  # number of the first person: after the 200 training and 60 test people of make_demo_faces
    probes: int = 3  # templates per person, besides the one in the gallery
    pairs: int = 20_000  # pairs of different people, at most all there are
    seed: int = 0

    def check(self) -> None:
        """Raises UserError for settings that are out of range."""
        if self.target not in GALLERIES:
            raise UserError(f"--target {self.target}: should be {' or '.join(GALLERIES)}")
        limits = {"people": (2, 2000), "first": (0, 10**9), "probes": (1, 20), "pairs": (1, 10**7)}
        for name, (low, high) in (limits | {"seed": (0, 2**32 - 1)}).items():
            check_between(f"--{name}", getattr(self, name), low, high)

    @property
    def numbers(self) -> range:
        """The numbers of the people; with the seed they determine what the people look like."""
        return range(self.first, self.first + self.people)


@dataclass(frozen=True)
class Image:
    """An image of the set: one line of its lists."""

    number: int  # number of the file
    subject: int
    template: int
    medium: int
    detection: Detection

    @property
    def name(self) -> str:
        """The file name in loose_crop."""
        return f"{self.number}.jpg"


def sample_person(seed: int, number: int, probes: int) -> tuple[Person, list[Template]]:
    """Samples a person and their templates, the gallery's first. The first ones do not depend on `probes`."""
    rng = np.random.default_rng([seed, number])
    return Person.sample(rng), [sample_template(rng) for _ in range(1 + probes)]


def person_photos(seed: int, number: int, probes: int) -> list[bytes]:
    """Draws all photos of a person as JPEG files, template by template, medium by medium."""
    person, templates = sample_person(seed, number, probes)
    return [render_photo(person, detection) for template in templates for medium in template for detection in medium]


def plan_set(plan: Plan) -> tuple[np.ndarray, list[Image], list[Pair]]:
    """Returns the template ids, (people, 1 + probes) with the galleries' first, the images and the pairs."""
    rng = np.random.default_rng([plan.seed, plan.first + plan.people])
    templates = _sparse_ids(plan.people * (1 + plan.probes), rng).reshape(plan.people, -1)
    return templates, _plan_images(plan, templates, rng), _plan_pairs(plan, templates, rng)


def _plan_images(plan: Plan, templates: np.ndarray, rng: Generator) -> list[Image]:
    """Returns all images in the order in which `person_photos` draws them, with random file and medium numbers."""
    media: list[tuple[int, int, Medium]] = []
    for subject, ids in zip(plan.numbers, templates.tolist(), strict=True):
        _, sampled = sample_person(plan.seed, subject, plan.probes)
        for template, template_media in zip(ids, sampled, strict=True):
            media += [(subject, template, medium) for medium in template_media]
    medium_ids = _sparse_ids(len(media), rng).tolist()
    numbers = iter((1 + rng.permutation(sum(len(medium) for *_, medium in media))).tolist())
    return [
        Image(next(numbers), subject, template, medium_id, detection)
        for (subject, template, medium), medium_id in zip(media, medium_ids, strict=True)
        for detection in medium
    ]


def _plan_pairs(plan: Plan, templates: np.ndarray, rng: Generator) -> list[Pair]:
    """Returns all pairs of the same person, and random pairs of different people."""
    n_other_probes = (plan.people - 1) * plan.probes  # probes of other people for each gallery template
    n_different = plan.people * n_other_probes
    chosen = rng.choice(n_different, min(plan.pairs, n_different), replace=False)
    person, rest = np.divmod(chosen, n_other_probes)
    step, probe = np.divmod(rest, plan.probes)
    other = (person + 1 + step) % plan.people
    gallery, probes = templates[:, 0], templates[:, 1:]
    same = zip(gallery.repeat(plan.probes).tolist(), probes.ravel().tolist(), strict=True)
    different = zip(gallery[person].tolist(), probes[other, probe].tolist(), strict=True)
    return sorted([(*pair, 1) for pair in same] + [(*pair, 0) for pair in different])


def _sparse_ids(count: int, rng: Generator) -> np.ndarray:
    """Returns `count` distinct numbers with gaps between them, in random order."""
    return 1 + rng.permutation(10 * count)[:count]


def make(out: Path, plan: Plan, workers: int = 1, force: bool = False) -> bool:
    """Makes the set in folder `out`. Returns False where it exists, made with the same plan, else True.

    Raises UserError where `out` holds anything else, or cannot be written.
    """
    plan.check()
    settings = {"version": VERSION, **asdict(plan)}
    return make_folder(out, settings, lambda folder: _write(folder, plan, workers), force)


def _write(folder: Path, plan: Plan, workers: int) -> None:
    templates, images, pairs = plan_set(plan)
    _write_meta(folder / "meta", plan, templates, images, pairs)
    jobs = [(plan.seed, number, plan.probes) for number in plan.numbers]
    with tqdm(total=len(images), unit="face", desc="Drawing", disable=None) as bar:
        sheet = _write_photos(folder / "loose_crop", images, draw_all(person_photos, jobs, workers, bar))
    (folder / "people.png").write_bytes(encode(".png", sheet))


def _write_meta(folder: Path, plan: Plan, templates: np.ndarray, images: list[Image], pairs: list[Pair]) -> None:
    """Writes the lists. They are sorted by file number, which is random, so templates are scattered."""
    folder.mkdir()
    prefix = plan.target.lower()
    images = sorted(images, key=lambda image: image.number)
    _write_lines(folder / f"{prefix}_name_5pts_score.txt", map(_detection_row, images))
    _write_lines(folder / f"{prefix}_face_tid_mid.txt", ((i.name, i.template, i.medium) for i in images))
    _write_lines(folder / f"{prefix}_template_pair_label.txt", pairs)
    half = (plan.people + 1) // 2
    first, second = (f"gallery_{name}" for name in GALLERIES[plan.target])
    for name, ids in {first: templates[:half, 0], second: templates[half:, 0], "probe_mixed": templates[:, 1:]}.items():
        members = set(ids.ravel().tolist())
        rows = ((i.template, i.subject, i.name, i.number) for i in images if i.template in members)
        header = ("TEMPLATE_ID", "SUBJECT_ID", "FILENAME", "SIGHTING_ID")
        _write_lines(folder / f"{prefix}_1N_{name}.csv", [header, *rows], ",")


def _detection_row(image: Image) -> list[str]:
    """Formats an image's file name, landmarks (x and y in turn) and score."""
    landmarks = image.detection.landmarks
    coordinates = np.stack([landmarks.real, landmarks.imag], 1).ravel()
    return [image.name, *(f"{x:.3f}" for x in coordinates), f"{image.detection.score:.4f}"]


def _write_lines(path: Path, rows: Iterable[Iterable[object]], separator: str = " ") -> None:
    path.write_text("".join(separator.join(map(str, row)) + "\n" for row in rows))


def _write_photos(folder: Path, images: list[Image], photos: Iterator[list[bytes]]) -> np.ndarray:
    """Writes the photos of each person. Returns the image of some photos of the first people."""
    folder.mkdir()
    remaining = iter(images)
    rows: list[np.ndarray] = []
    for files in photos:
        person_images = [next(remaining) for _ in files]
        for image, file in zip(person_images, files, strict=True):
            (folder / image.name).write_bytes(file)
        if len(rows) < SHEET_SIZE:
            shown = np.linspace(0, len(files) - 1, SHEET_SIZE).astype(int)
            rows.append(np.hstack([_tile(decode(files[i]), person_images[i].detection.landmarks) for i in shown]))
    return np.vstack(rows)


def _tile(image: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """Returns the photo with its landmarks, scaled to fit on a white square, (TILE_SIZE, TILE_SIZE, 3) uint8."""
    for point in landmarks:
        cv2.circle(image, (round(point.real), round(point.imag)), 3, (0, 255, 0), -1, cv2.LINE_AA)
    height, width = (side * (TILE_SIZE - 4) // max(image.shape) for side in image.shape[:2])
    top, left = (TILE_SIZE - height) // 2, (TILE_SIZE - width) // 2
    tile = np.full((TILE_SIZE, TILE_SIZE, 3), 255, np.uint8)
    tile[top : top + height, left : left + width] = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    return tile


def main() -> None:
    """Parses the command line and makes the set."""
    parser = argparse.ArgumentParser(description="Make a small synthetic set in the layout of IJB-B or IJB-C.")
    parser.add_argument("--out", type=Path, default=Path("data/ijb_demo"), help="folder to write (%(default)s)")
    parser.add_argument("--target", default=Plan.target, help="layout of the file names: IJBB or IJBC (%(default)s)")
    parser.add_argument("--people", type=int, default=Plan.people, help="people, half in each gallery (%(default)s)")
    parser.add_argument("--first", type=int, default=Plan.first, help="number of the first person (%(default)s)")
    parser.add_argument("--probes", type=int, default=Plan.probes, help="probe templates per person (%(default)s)")
    parser.add_argument("--pairs", type=int, default=Plan.pairs, help="pairs of different people (%(default)s)")
    args = parse_arguments(parser, Plan.seed)
    plan = Plan(args.target, args.people, args.first, args.probes, args.pairs, args.seed)
    if make(args.out, plan, args.workers, args.force):
        lines = (args.out / "meta" / f"{plan.target.lower()}_face_tid_mid.txt").read_text().count("\n")
        print(f"{args.out}: {plan.people} people in {lines} images and {plan.people * (1 + plan.probes)} templates")
    else:
        print(f"{args.out}: exists already, nothing to do; --force makes it again")


if __name__ == "__main__":
    run_cli(main)
