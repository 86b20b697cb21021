"""Writes the images of a training set as files, a folder for each person: python data/unpack.py REC OUT

REC is a folder with train.rec and train.idx. The folders of OUT have the names of the people in REC/people.csv, which
data/pack.py writes, or else the labels, 00000, 00001, …; the files have the keys of the records. Their bytes are copied
unchanged, so that data/pack.py makes the same images of them.
"""

import argparse
import os
import shlex
import sys
from pathlib import Path

if not __package__:  # run as a script: put the repository first on the path, not this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from tqdm import tqdm

from data.packing.names import read_names
from data.packing.writer import create_folder
from utils.datasets.face_dataset import FaceDataset
from utils.datasets.image_header import find_suffix
from utils.datasets.recordio.index import RecordError
from utils.errors import UserError, one_line, quantity, run_cli, shorten


def main() -> None:
    """Parses the command line and writes the images."""
    parser = argparse.ArgumentParser(description="Write the images of a training set as files, a folder per person.")
    parser.add_argument("rec", type=Path, metavar="REC", help="a folder with train.rec and train.idx")
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to write")
    args = parser.parse_args()
    if args.rec.suffix.lower() == ".bin":
        raise UserError(
            f"{args.rec}: should be a folder with train.rec, not a verification set, which names no people",
            fix=f"python data/info.py {shlex.quote(str(args.rec))} --sheet FILE.png draws some of its pairs",
        )
    dataset = FaceDataset(args.rec)
    with create_folder(args.out) as folder:
        n_people = write_images(folder, dataset, read_names(args.rec / "people.csv"))
    print(f"{one_line(args.out)}: {quantity(len(dataset), 'image')} of {quantity(n_people, 'person', 'people')}")


def write_images(folder: Path, dataset: FaceDataset, names: dict[int, str]) -> int:
    """Writes PERSON/KEY.jpg (or .png, …) for each image. Returns the number of people.

    The person's folder has the name of the label, where it can be the name of a folder, or else the label. Raises
    OSError, and UserError for a damaged record, a label that is no class, and a record that holds no image.
    """
    n_classes = dataset.count_classes()
    dataset.check_labels(n_classes)
    label_width, key_width = max(5, len(str(n_classes - 1))), max(8, len(str(dataset.keys.max())))
    labels = dataset.label_values.astype(int).tolist()
    people = {label: folder / f"{label:0{label_width}}" for label in {*labels}}
    people |= {label: folder / names[label] for label in people.keys() & names if is_folder_name(names[label])}
    if n_others := sum(label in names and person.name != names[label] for label, person in people.items()):
        others = quantity(n_others, "person whose name", "people whose names")
        print(f"{others} cannot be that of a folder: the label is, in its place", file=sys.stderr)
    for person in people.values():
        try:
            person.mkdir()
        except FileExistsError:
            problem = f"{dataset.name}: two people have the folder {shorten(person.name)}"
            raise UserError(problem, fix="rename one in people.csv") from None
    for key, label in zip(tqdm(dataset.keys.tolist(), unit="image", disable=None), labels, strict=True):
        _, image = dataset.reader.read_image(key)
        if not (suffix := find_suffix(image)):
            raise RecordError(f"{dataset.reader.location(key)}: not a JPEG, PNG, BMP or WebP image")
        (people[label] / f"{key:0{key_width}}{suffix}").write_bytes(image)
    return len(people)


def is_folder_name(name: str) -> bool:
    """Whether a name can be that of a folder inside another, which data/pack.py does not take for a hidden one."""
    return 0 < len(os.fsencode(name)) < 256 and name[0] != "." and not {"/", "\0"} & {*name}


if __name__ == "__main__":
    run_cli(main)
