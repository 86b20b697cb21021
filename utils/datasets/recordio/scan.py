"""Records found in the file itself: what the parts of a record say of its extent, without an index."""

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from utils.datasets.recordio.index import PART_HEAD, RecordError, as_record_error, open_record_file, reindex_hint

MAGIC = 0xCED7230A
MAGIC_BYTES = MAGIC.to_bytes(4, "little")
LENGTH_LIMIT = 1 << 29  # a payload is shorter than this: its length has 29 bits
PART = struct.Struct("<II")
HEAD = 32  # bytes of the payload: an image header and two labels


class ScannedRecord(NamedTuple):
    """The extent of a record in its file, in bytes, and the begin of its payload."""

    offset: int
    end: int  # where the next record begins, or the file ends
    length: int  # of the payload
    head: bytes  # the payload's first HEAD bytes


def scan_record(file: int, rec: Path, offset: int, size: int) -> ScannedRecord:
    """Return the record at `offset` of the open file `rec` of `size` bytes. Only the heads of its parts are read.

    Raises RecordError, which names the byte, where no whole record is there.
    """
    at, head, length, parts = offset, b"", 0, 0
    while True:
        with as_record_error(rec):
            data = os.pread(file, PART_HEAD + HEAD, at)
        if len(data) < PART_HEAD:
            raise _no_record(rec, at, f"the file ends at byte {size}, amid a record")
        magic, word = PART.unpack_from(data)
        cflag, part = word >> 29, word & (LENGTH_LIMIT - 1)
        end = at + PART_HEAD + part + (-part & 3)
        if magic != MAGIC:
            raise _no_record(rec, at, f"no record is there, but {magic:#010x} instead of {MAGIC:#010x}")
        if cflag not in ((2, 3) if parts else (0, 1)) or (cflag in (1, 2) and part % 4):
            raise _no_record(rec, at, f"a part of kind {cflag} and {part} bytes cannot stand there")
        if end > size:
            raise _no_record(rec, at, f"its {part} bytes run beyond the end of the file at byte {size}")
        head = (head + MAGIC_BYTES * bool(parts) + data[PART_HEAD : PART_HEAD + part])[:HEAD]
        length += part + 4 * bool(parts)
        at, parts = end, parts + 1
        if cflag in (0, 3):
            return ScannedRecord(offset, end, length, head)


def scan_file(rec: Path) -> Iterator[ScannedRecord]:
    """Yield every record of a file in order. Raises RecordError where the file is damaged, naming the byte."""
    with open_record_file(rec) as file:
        size = os.fstat(file.fileno()).st_size
        at = 0
        while at < size:
            record = scan_record(file.fileno(), rec, at, size)
            yield record
            at = record.end


def check_indexed_ends(file: int, rec: Path, idx: Path, first: int, last: int, size: int) -> None:
    """Raise RecordError where records stand before the `first` or behind the `last` offset of an index."""
    if first:
        raise RecordError(f"{idx}: its first record is at byte {first} of {rec}, not at 0; {reindex_hint(rec)}")
    try:
        end = scan_record(file, rec, last, size).end
        scan_record(file, rec, end, size)
    except RecordError:  # nothing is behind it; or it is damaged, which whoever reads it will say
        return
    raise RecordError(
        f"{idx}: its last record is at byte {last}, but {size - end} bytes of records follow it in {rec}: the index is "
        f"cut short; {reindex_hint(rec)}"
    )


def _no_record(rec: Path, at: int, what: str) -> RecordError:
    return RecordError(f"{rec}: byte {at}: {what}; the file is cut short or damaged: copy it again")
