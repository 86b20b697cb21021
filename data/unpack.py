"""Writes the images of a training set as files, a folder for each person: python data/unpack.py REC OUT

REC is a folder with train.rec and train.idx. The folders of OUT are the labels, 00000, 00001, …, and the files the keys
of the records; their bytes are copied unchanged, so that data/pack.py makes the same images of them.
"""

import argparse
import sys
from pathlib import Path

if not __package__:  # run as a script: put the repository first on the path, not this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from tqdm import tqdm

from data.packing.writer import create_folder
from utils.datasets.face_dataset import FaceDataset
from utils.datasets.image_header import find_suffix
from utils.datasets.recordio.index import RecordError
from utils.errors import one_line, run_cli


def main() -> None:
    """Parses the command line and writes the images."""
    parser = argparse.ArgumentParser(description="Write the images of a training set as files, a folder per person.")
    parser.add_argument("rec", type=Path, metavar="REC", help="a folder with train.rec and train.idx")
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to write")
    args = parser.parse_args()
    dataset = FaceDataset(args.rec)
    with create_folder(args.out) as folder:
        n_people = write_images(folder, dataset)
    print(f"{one_line(args.out)}: {len(dataset):,} images of {n_people:,} people")


def write_images(folder: Path, dataset: FaceDataset) -> int:
    """Writes LABEL/KEY.jpg (or .png, …) for each image. Returns the number of people.

    Raises OSError, and UserError for a damaged record, a label that is no class, and a record that holds no image.
    """
    n_classes = dataset.count_classes()
    dataset.check_labels(n_classes)
    label_width, key_width = max(5, len(str(n_classes - 1))), max(8, len(str(dataset.keys.max())))
    labels = dataset.label_values.astype(int).tolist()
    for label in {*labels}:
        (folder / f"{label:0{label_width}}").mkdir()
    for key, label in zip(tqdm(dataset.keys.tolist(), unit="image", disable=None), labels, strict=True):
        _, image = dataset.reader.read_image(key)
        if not (suffix := find_suffix(image)):
            raise RecordError(f"{dataset.reader.location(key)}: not a JPEG, PNG, BMP or WebP image")
        (folder / f"{label:0{label_width}}" / f"{key:0{key_width}}{suffix}").write_bytes(image)
    return len({*labels})


if __name__ == "__main__":
    run_cli(main)
