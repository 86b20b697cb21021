"""Says what is in a training set: python data/info.py REC [--sheet FILE.png]

REC is a folder with train.rec and train.idx. Reads and decodes every image, and prints the people, the images of a
person, sizes, formats and bad records, which training could not read. --sheet draws some of the people. Exits with 2 if
there are bad records.
"""

import argparse
import sys
from pathlib import Path

if not __package__:  # run as a script: put the repository first on the path, not this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np

from data.alignment.sheet import COLUMNS, Tile, draw_sheet, spread
from data.packing.survey import Survey
from utils.datasets.face_dataset import FaceDataset
from utils.errors import UserError, one_line, run_cli
from utils.filesystem import write_atomic

_MAX_PEOPLE, _MAX_PROBLEMS = 10, 2 * COLUMNS  # on the sheet
_MAX_NAMED = 5  # bad records that are named


def main() -> None:
    """Parses the command line, reads the set and prints what is in it."""
    parser = argparse.ArgumentParser(description="Say what is in a training set.")
    parser.add_argument("rec", type=Path, metavar="REC", help="a folder with train.rec and train.idx")
    parser.add_argument("--sheet", type=Path, metavar="FILE", help="a PNG to draw, with images of some people")
    args = parser.parse_args()
    dataset = FaceDataset(args.rec)
    survey = Survey(dataset)
    n_classes = dataset.count_classes() if (args.rec / "property").exists() else None
    print(*dataset.warnings(), *survey.describe(n_classes), sep="\n")
    for index in list(survey.problems)[:_MAX_NAMED]:
        print(f"  {one_line(dataset.location(index))}: {survey.problems[index]}")
    if args.sheet:
        try:
            sheet = draw_people(dataset, survey)
            write_atomic(args.sheet, lambda file: file.write(sheet))
        except OSError as error:
            raise UserError(f"--sheet {args.sheet}: {error.strerror}") from error
    if survey.problems:
        raise UserError(f"{dataset.name}: {len(survey.problems):,} bad records", fix="training ends at each of them")


def draw_people(dataset: FaceDataset, survey: Survey) -> bytes:
    """Returns a PNG with a row of images for each of some people, then the bad records."""
    labels, counts = survey.images_per_person()
    parts: dict[str, list[Tile]] = {}
    for i in spread(len(labels), _MAX_PEOPLE):
        indices = np.flatnonzero(survey.labels == labels[i])
        tiles = [_make_tile(dataset, survey, indices[k]) for k in spread(len(indices), COLUMNS)]
        parts[f"person {labels[i]}: {counts[i]:,} images"] = tiles
    bad = [_make_tile(dataset, survey, index) for index in list(survey.problems)[:_MAX_PROBLEMS]]
    return draw_sheet(parts | {f"bad records: {len(survey.problems):,}": bad})


def _make_tile(dataset: FaceDataset, survey: Survey, index: int) -> Tile:
    key = int(dataset.keys[index])
    try:
        photo = dataset.reader.read_image(key)[1]
    except UserError:
        photo = b""
    return Tile(photo, f"record {key}", survey.problems.get(index, ""))


if __name__ == "__main__":
    run_cli(main)
