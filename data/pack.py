"""Packs photos of people, one folder per person, for training: python data/pack.py PHOTOS OUT

Writes OUT with train.rec, train.idx and property in the layout of MS1MV2. The photos are aligned faces of 112×112
pixels as JPEG, PNG, BMP or WebP; their bytes are copied unchanged. The people are labelled 0, 1, 2, … in the order of
their folders' names.
"""

import argparse
import sys
import tempfile
from pathlib import Path

if not __package__:  # run as a script: put the repository first on the path, not this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
from tqdm import tqdm

from utils.datasets.image_header import SUFFIXES, read_image_size
from utils.datasets.recordio.record_format import IndexedRecordWriter, RecordHeader, pack
from utils.errors import UserError, run_cli
from utils.filesystem import open_regular_file

SIZE = 112  # pixels
_FORMATS = ", ".join(SUFFIXES)


def main() -> None:
    """Parses the command line and packs the photos."""
    parser = argparse.ArgumentParser(description="Pack photos of people, one folder per person, for training.")
    parser.add_argument("photos", type=Path, metavar="PHOTOS", help="a folder with a folder of photos for each person")
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to write")
    args = parser.parse_args()
    try:
        people = find_people(args.photos)
        if args.out.exists():
            raise UserError(f"{args.out}: already exists", fix="name another folder, or delete it")
        args.out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=args.out.parent, prefix=".packing-") as temporary:
            made = Path(temporary, "made")
            made.mkdir()
            write_records(made, people)
            made.rename(args.out)
    except OSError as error:
        raise UserError(f"{error.filename or args.out}: {error.strerror or error}") from error
    print(f"{args.out}: {sum(map(len, people)):,} photos of {len(people):,} people; train with rec={args.out}")


def find_people(photos: Path) -> list[list[Path]]:
    """Returns the paths of each person's photos; people and photos are sorted by name.

    Raises UserError unless at least two people have photos.
    """
    folders = sorted(path for path in photos.iterdir() if path.is_dir() and not path.name.startswith("."))
    files = [sorted(path for path in folder.iterdir() if not path.name.startswith(".")) for folder in folders]
    people = [[path for path in person if path.suffix.lower() in SUFFIXES] for person in files]
    if n_skipped := sum(map(len, files)) - sum(map(len, people)):
        print(f"{photos}: {n_skipped} files of other types than {_FORMATS} are skipped", file=sys.stderr)
    people = [person for person in people if person]
    if len(people) < 2:
        raise UserError(
            f"{photos}: {len(people)} of its {len(folders)} folders hold photos ({_FORMATS}); training "
            "needs at least two people, one folder each"
        )
    return people


def write_records(folder: Path, people: list[list[Path]]) -> None:
    """Writes train.rec, train.idx and property. Raises UserError for a photo of another size or format."""
    ends = np.cumsum([1, *map(len, people)])  # a person's keys run from one of these to the next
    with (
        IndexedRecordWriter(folder / "train.rec", folder / "train.idx") as writer,
        tqdm(total=int(ends[-1]) - 1, unit="photo", disable=None) as bar,
    ):
        writer.write(0, pack(RecordHeader(2, np.array([ends[-1], ends[-1] + len(people)]), 0, 0), b""))
        for label, (begin, person) in enumerate(zip(ends.tolist(), people, strict=False)):
            for key, path in enumerate(person, begin):
                writer.write(key, pack(RecordHeader(0, float(label), key, 0), _read_photo(path)))
                bar.update()
        for key, begin, end in zip(range(int(ends[-1]), 1 << 62), ends[:-1], ends[1:], strict=False):
            writer.write(key, pack(RecordHeader(2, np.array([begin, end]), key, 0), b""))
    (folder / "property").write_text(f"{len(people)},{SIZE},{SIZE}")


def _read_photo(path: Path) -> bytes:
    with open_regular_file(path) as file:
        photo = file.read()
    size = read_image_size(photo)
    if size != (SIZE, SIZE):
        content = f"an image of {size[0]}×{size[1]} pixels" if size else "not a JPEG, PNG, BMP or WebP image"
        raise UserError(
            f"{path}: {content}", fix=f"training needs aligned faces of {SIZE}×{SIZE} pixels: align and crop it"
        )
    return photo


if __name__ == "__main__":
    run_cli(main)
