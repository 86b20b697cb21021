"""Makes the index of a record file by walking its records: python data/reindex.py FOLDER_OR_REC [--force]

Writes train.idx next to train.rec, or NAME.idx next to NAME.rec. The key of a record is the id in its image header, as
MXNet's tools write it. The records are counted from 0 instead where ids are missing or not unique, or where the file
begins with MS1MV2's record 0 and the ids do not count from it.
"""

import argparse
import os
import sys
from array import array
from pathlib import Path
from typing import BinaryIO

if not __package__:  # run as a script: put the repository first on the path, not this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
from tqdm import tqdm

from utils.datasets.recordio.index import as_record_error
from utils.datasets.recordio.record_format import IMAGE_HEADER
from utils.datasets.recordio.scan import scan_file
from utils.errors import UserError, quantity, run_cli
from utils.filesystem import write_atomic

KEY_LIMIT = 10**18  # exclusive limit of a key in an index
_CHUNK = 1 << 16  # lines written at once


def main() -> None:
    """Parses the command line and writes the index."""
    parser = argparse.ArgumentParser(description="Make the index of a record file by walking its records.")
    parser.add_argument("rec", type=Path, metavar="FOLDER_OR_REC", help="a folder with train.rec, or a .rec file")
    parser.add_argument("--force", action="store_true", help="replace an existing index")
    args = parser.parse_args()
    rec = args.rec / "train.rec" if args.rec.is_dir() else args.rec
    idx = rec.with_suffix(".idx")
    if rec.suffix == ".idx":
        raise UserError(f"{rec}: is an index", fix="name the .rec file, or its folder")
    if os.path.lexists(idx) and not args.force:
        raise UserError(f"{idx}: already exists", fix="--force replaces it")
    keys, offsets, source = read_keys(rec)
    write_index(idx, keys, offsets)
    print(f"{idx}: {quantity(len(keys), 'record')} of {rec.name}, keys {source}")


def read_keys(rec: Path) -> tuple[np.ndarray, np.ndarray, str]:
    """Returns the keys and byte offsets of all records in file order, each (N,) int64, and the keys' source in words.

    Raises RecordError naming the byte where the file is damaged, and UserError where it is empty.
    """
    offsets, ids = array("q"), array("Q")
    has_ids, has_record_0 = True, False
    with as_record_error(rec):
        size = rec.stat().st_size
    with tqdm(total=size, unit="B", unit_scale=True, desc=rec.name, disable=None) as bar:
        for record in scan_file(rec):
            offsets.append(record.offset)
            bar.update(record.end - record.offset)
            has_ids = has_ids and record.length >= IMAGE_HEADER.size
            if has_ids:
                flag, _, id_, _ = IMAGE_HEADER.unpack_from(record.prefix)
                has_ids = id_ < KEY_LIMIT and IMAGE_HEADER.size + 4 * flag <= record.length
                has_record_0 |= not record.offset and flag > 0 and record.length == IMAGE_HEADER.size + 4 * flag
                ids.append(id_)
    if not offsets:
        raise UserError(f"{rec}: is empty", fix="copy it again")
    counted = np.arange(len(offsets))
    if has_ids:
        keys = np.array(ids, np.uint64).astype(np.int64)
        ordered = np.sort(keys)
        if (ordered == counted).all() or (not has_record_0 and (ordered[1:] > ordered[:-1]).all()):
            return keys, np.array(offsets), "from the ids in the records"
    return counted, np.array(offsets), "counted from 0"


def write_index(idx: Path, keys: np.ndarray, offsets: np.ndarray) -> None:
    """Writes an index file, atomically. Raises RecordError where it cannot be written."""

    def write(file: BinaryIO) -> None:
        for begin in range(0, len(keys), _CHUNK):
            chunk = slice(begin, begin + _CHUNK)
            lines = zip(keys[chunk].tolist(), offsets[chunk].tolist(), strict=True)
            file.write(b"".join(b"%d\t%d\n" % line for line in lines))

    with as_record_error(idx):
        write_atomic(idx, write)


if __name__ == "__main__":
    run_cli(main)
