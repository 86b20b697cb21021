"""Writes a training set in the layout of MS1MV2, into a folder that appears only when it is complete."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data.packing.sources import People
from utils.datasets.alignment import SIZE
from utils.datasets.recordio.record_format import IndexedRecordWriter, RecordHeader, pack
from utils.errors import UserError
from utils.temporary_folder import temporary_folder


@contextmanager
def create_folder(out: Path) -> Iterator[Path]:
    """Context manager that yields a new folder, which becomes `out` if the block succeeds and is deleted otherwise.

    Translates OSError into a UserError. Raises UserError where `out` exists.
    """
    try:
        if out.exists() or out.is_symlink():
            raise UserError(f"{out}: already exists", fix="name another folder, or delete it")
        out.parent.mkdir(parents=True, exist_ok=True)
        with temporary_folder(out.parent, ".packing-") as temporary:
            folder = temporary / "new"
            folder.mkdir()
            yield folder
            folder.rename(out)
    except OSError as error:
        raise UserError(f"{error.filename or out}: {error.strerror or error}") from error


def write_training_set(folder: Path, people: People) -> None:
    """Writes train.rec, train.idx and property; the people have the labels 0, 1, 2, … in their order.

    Raises OSError, and UserError for a photo that training cannot read.
    """
    ends = np.cumsum([1, *map(len, people.values())])  # a person's keys run from one of these to the next
    end = int(ends[-1])
    with (
        IndexedRecordWriter(folder / "train.rec", folder / "train.idx") as writer,
        tqdm(total=end - 1, unit="photo", desc="Packing", disable=None) as bar,
    ):
        writer.write(0, pack(RecordHeader(2, np.array([end, end + len(people)]), 0, 0), b""))
        key = 1
        for label, photos in enumerate(people.values()):
            for photo in photos:
                writer.write(key, pack(RecordHeader(0, float(label), key, 0), photo.read_face()))
                key += 1
                bar.update()
        for key, keys in enumerate(itertools.pairwise(ends), end):
            writer.write(key, pack(RecordHeader(2, np.array(keys), key, 0), b""))
    (folder / "property").write_text(f"{len(people)},{SIZE},{SIZE}")
