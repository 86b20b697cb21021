"""Scans a record file without its index: finds the extent of each record from the headers of its parts."""

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from utils.datasets.recordio.index import PART_HEADER_SIZE, RecordError, as_record_error, open_record_file, reindex_hint

MAGIC = 0xCED7230A
MAGIC_BYTES = MAGIC.to_bytes(4, "little")
LENGTH_LIMIT = 1 << 29  # exclusive limit of a payload in bytes: its length has 29 bits
PART_HEADER = struct.Struct("<II")  # magic, cflag << 29 | length
PREFIX_SIZE = 32  # bytes of a payload that are kept: an image header and two labels


class ScannedRecord(NamedTuple):
    """The extent of a record in its file, in bytes, and the first bytes of its payload."""

    offset: int
    end: int  # where the next record begins, or the file ends
    length: int  # of the payload
    prefix: bytes  # the payload's first PREFIX_SIZE bytes


def scan_record(file: int, rec: Path, offset: int, size: int) -> ScannedRecord:
    """Returns the record at `offset` of the open file `rec` of `size` bytes. Reads only the headers of its parts.

    Raises RecordError naming the byte where there is no complete record.
    """
    position, prefix, length, n_parts = offset, b"", 0, 0
    while True:
        with as_record_error(rec):
            data = os.pread(file, PART_HEADER_SIZE + PREFIX_SIZE, position)
        if len(data) < PART_HEADER_SIZE:
            raise _no_record(rec, position, f"the file ends at byte {size}, in the middle of a record")
        magic, word = PART_HEADER.unpack_from(data)
        cflag, part_length = word >> 29, word & (LENGTH_LIMIT - 1)
        end = position + PART_HEADER_SIZE + part_length + (-part_length & 3)
        if magic != MAGIC:
            raise _no_record(rec, position, f"no record is there, but {magic:#010x} instead of {MAGIC:#010x}")
        if cflag not in ((2, 3) if n_parts else (0, 1)) or (cflag in (1, 2) and part_length % 4):
            raise _no_record(rec, position, f"a part with cflag {cflag} and {part_length} bytes is not valid there")
        if end > size:
            raise _no_record(rec, position, f"its {part_length} bytes run beyond the end of the file at byte {size}")
        payload = data[PART_HEADER_SIZE : PART_HEADER_SIZE + part_length]
        prefix = (prefix + MAGIC_BYTES * bool(n_parts) + payload)[:PREFIX_SIZE]
        length += part_length + 4 * bool(n_parts)
        position, n_parts = end, n_parts + 1
        if cflag in (0, 3):
            return ScannedRecord(offset, end, length, prefix)


def scan_file(rec: Path) -> Iterator[ScannedRecord]:
    """Yields every record of a file in order. Raises RecordError naming the byte where the file is damaged."""
    with open_record_file(rec) as file:
        size = os.fstat(file.fileno()).st_size
        offset = 0
        while offset < size:
            record = scan_record(file.fileno(), rec, offset, size)
            yield record
            offset = record.end


def check_indexed_ends(file: int, rec: Path, idx: Path, first: int, last: int, size: int) -> None:
    """Raises RecordError where the file has records before the `first` or after the `last` offset of an index."""
    if first:
        raise RecordError(f"{idx}: its first record is at byte {first} of {rec}, not at 0", fix=reindex_hint(rec))
    try:
        end = scan_record(file, rec, last, size).end
        scan_record(file, rec, end, size)
    except RecordError:  # nothing follows, or the file is damaged, which reading it will report
        return
    raise RecordError(
        f"{idx}: its last record is at byte {last}, but {size - end} bytes of records follow it in {rec}: the index is "
        "cut short",
        fix=reindex_hint(rec),
    )


def _no_record(rec: Path, offset: int, problem: str) -> RecordError:
    return RecordError(f"{rec}: byte {offset}: {problem}", fix="the file is cut short or damaged: copy it again")
