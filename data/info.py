"""Says what is in a training or verification set: python data/info.py SET [--sheet FILE.png]

SET is a folder with train.rec and train.idx, or a verification set, FILE.bin. Reads and decodes every image. Prints the
people, the images of a person, or the pairs; sizes, formats and bad records or images, which training or evaluation
could not read. --sheet draws some of the people or pairs. Exits with 2 if there are bad records or images.
"""

import argparse
import sys
from pathlib import Path

if not __package__:  # run as a script: put the repository first on the path, not this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np

from data.alignment.sheet import COLUMNS, Tile, draw_sheet, spread
from data.packing.pair_survey import PairSurvey
from data.packing.survey import Survey
from utils.datasets.face_dataset import FaceDataset
from utils.errors import UserError, one_line, quantity, run_cli
from utils.filesystem import write_atomic

_MAX_PEOPLE, _MAX_PROBLEMS = 10, 2 * COLUMNS  # on the sheet
_MAX_NAMED = 5  # bad records that are named


def main() -> None:
    """Parses the command line, reads the set and prints what is in it."""
    parser = argparse.ArgumentParser(description="Say what is in a training or verification set.")
    parser.add_argument("set", type=Path, metavar="SET", help="a folder with train.rec and train.idx, or a FILE.bin")
    parser.add_argument("--sheet", type=Path, metavar="FILE", help="a PNG to draw, with images of some people or pairs")
    args = parser.parse_args()
    (describe_pairs if args.set.suffix.lower() == ".bin" else describe_people)(args.set, args.sheet)


def describe_people(folder: Path, sheet: Path | None) -> None:
    """Prints what is in a training set, and draws the sheet. Raises UserError if there are bad records."""
    dataset = FaceDataset(folder)
    survey = Survey(dataset)
    n_classes = dataset.count_classes() if (folder / "property").exists() else None
    print(*dataset.warnings(), *survey.describe(n_classes), sep="\n")
    for index in list(survey.problems)[:_MAX_NAMED]:
        print(f"  {one_line(dataset.location(index))}: {survey.problems[index]}")
    if sheet:
        write_sheet(sheet, draw_people(dataset, survey))
    if survey.problems:
        n_bad = quantity(len(survey.problems), "bad record")
        raise UserError(f"{dataset.name}: {n_bad}", fix="training ends at each of them")


def describe_pairs(path: Path, sheet: Path | None) -> None:
    """Prints what is in a verification set, and draws the sheet. Raises UserError if there are bad images."""
    survey = PairSurvey(path)
    print(*survey.describe(), sep="\n")
    for index in survey.bad[:_MAX_NAMED]:
        print(f"  image {index} of {len(survey.images)}, in pair {index // 2}: cannot be decoded")
    if sheet:
        write_sheet(sheet, survey.draw())
    if survey.bad:
        n_bad = quantity(len(survey.bad), "bad image")
        raise UserError(f"{path}: {n_bad}", fix="evaluation ends at each of them")


def write_sheet(path: Path, parts: dict[str, list[Tile]]) -> None:
    """Draws the parts of a sheet as PNG. Raises UserError if it cannot be written."""
    sheet = draw_sheet(parts)
    try:
        write_atomic(path, lambda file: file.write(sheet))
    except OSError as error:
        raise UserError(f"--sheet {path}: {error.strerror}") from error


def draw_people(dataset: FaceDataset, survey: Survey) -> dict[str, list[Tile]]:
    """Returns a row of images for each of some people, then the bad records."""
    labels, counts = survey.images_per_person()
    parts: dict[str, list[Tile]] = {}
    for i in spread(len(labels), _MAX_PEOPLE):
        indices = np.flatnonzero(survey.labels == labels[i])
        tiles = [_make_tile(dataset, survey, indices[k]) for k in spread(len(indices), COLUMNS)]
        parts[f"person {labels[i]}: {quantity(int(counts[i]), 'image')}"] = tiles
    bad = [_make_tile(dataset, survey, index) for index in list(survey.problems)[:_MAX_PROBLEMS]]
    return parts | {f"bad records: {len(survey.problems):,}": bad}


def _make_tile(dataset: FaceDataset, survey: Survey, index: int) -> Tile:
    key = int(dataset.keys[index])
    try:
        photo = dataset.reader.read_image(key)[1]
    except UserError:
        photo = b""
    return Tile(photo, f"record {key}", survey.problems.get(index, ""))


if __name__ == "__main__":
    run_cli(main)
