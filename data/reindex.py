"""Makes the index of a record file by walking its records: python data/reindex.py FOLDER_OR_REC [--force]

Writes train.idx beside train.rec, or NAME.idx beside NAME.rec. The key of a record is the id in its image header, as
MXNet's tools write it; where these do not tell the records apart, or the file begins with a header record and they do
not count from it, the records are counted from 0.
"""

import argparse
import os
import sys
from array import array
from pathlib import Path
from typing import BinaryIO

if not __package__:  # run as a script, this folder stands first on the path instead of the repository
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
from tqdm import tqdm

from utils.datasets.recordio.index import as_record_error
from utils.datasets.recordio.record_format import IMAGE_HEADER
from utils.datasets.recordio.scan import scan_file
from utils.errors import UserError, run_cli
from utils.filesystem import write_atomic

LARGEST_KEY = 10**18  # of an index, exclusive
_LINES_AT_ONCE = 1 << 16


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Make the index of a record file by walking its records.")
    parser.add_argument("rec", type=Path, metavar="FOLDER_OR_REC", help="a folder with train.rec, or a .rec file")
    parser.add_argument("--force", action="store_true", help="replace an index that is there")
    args = parser.parse_args()
    rec = args.rec / "train.rec" if args.rec.is_dir() else args.rec
    idx = rec.with_suffix(".idx")
    if rec.suffix == ".idx":
        raise UserError(f"{rec}: is an index; name the .rec file, or its folder")
    if os.path.lexists(idx) and not args.force:
        raise UserError(f"{idx}: is there already; --force replaces it")
    keys, offsets, how = read_keys(rec)
    write_index(idx, keys, offsets)
    print(f"{idx}: {len(keys):,} records of {rec.name}, keys {how}")


def read_keys(rec: Path) -> tuple[np.ndarray, np.ndarray, str]:
    """Return the keys and byte offsets of all records, in order, each (N,) int64, and in words where the keys are from.

    Raises RecordError, which names the byte, where the file is damaged, and UserError where it is empty.
    """
    offsets, ids = array("q"), array("Q")
    with_ids, has_header = True, False
    with as_record_error(rec):
        size = rec.stat().st_size
    with tqdm(total=size, unit="B", unit_scale=True, desc=rec.name, disable=None) as bar:
        for record in scan_file(rec):
            offsets.append(record.offset)
            bar.update(record.end - record.offset)
            with_ids = with_ids and record.length >= IMAGE_HEADER.size
            if with_ids:
                flag, _, id_, _ = IMAGE_HEADER.unpack_from(record.prefix)
                with_ids = id_ < LARGEST_KEY and IMAGE_HEADER.size + 4 * flag <= record.length
                has_header |= not record.offset and flag > 0 and record.length == IMAGE_HEADER.size + 4 * flag
                ids.append(id_)
    if not offsets:
        raise UserError(f"{rec}: is empty; copy it again")
    counted = np.arange(len(offsets))
    if with_ids:
        found = np.array(ids, np.uint64).astype(np.int64)
        ordered = np.sort(found)
        if (ordered == counted).all() or (not has_header and (ordered[1:] > ordered[:-1]).all()):
            return found, np.array(offsets), "by the ids in the records"
    return counted, np.array(offsets), "counted from 0"


def write_index(idx: Path, keys: np.ndarray, offsets: np.ndarray) -> None:
    """Write an index file, whole or not at all. Raises RecordError where it cannot be written."""

    def write(file: BinaryIO) -> None:
        for begin in range(0, len(keys), _LINES_AT_ONCE):
            part = slice(begin, begin + _LINES_AT_ONCE)
            lines = zip(keys[part].tolist(), offsets[part].tolist(), strict=True)
            file.write(b"".join(b"%d\t%d\n" % line for line in lines))

    with as_record_error(idx):
        write_atomic(idx, write)


if __name__ == "__main__":
    run_cli(main)
