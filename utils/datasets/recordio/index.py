"""The index of a record file: keys and byte offsets, read and checked."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from utils.errors import UserError
from utils.filesystem import open_regular_file

PART_HEAD = 8  # bytes in front of a part's payload: magic and length

_INDEX_LINE = re.compile(rb"\d{1,18}\t\d{1,18}")  # 18 digits always fit an int64


class RecordError(UserError):
    """A record or index file that is missing, damaged or does not hold what is asked of it."""


@contextmanager
def as_record_error(path: Path) -> Iterator[None]:
    """Turn what the system reports into a RecordError that names the file."""
    try:
        yield
    except OSError as error:
        raise RecordError(f"{path}: {error.strerror or error}") from error


def open_record_file(path: Path) -> BinaryIO:
    """Open a record or index file. Raises UserError where there is none, or something else than a regular file."""
    with as_record_error(path):
        return open_regular_file(path)


def reindex_hint(rec: Path) -> str:
    """Return what to do about an index that is not that of its record file."""
    return f"copy both again, or make the index anew: python data/reindex.py --force {rec}"


def read_index(idx: Path, rec: Path, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The keys of an index file in its order, then the keys in ascending order and their offsets; each (N,) int64.

    Raises RecordError for a line that is malformed, whose key or offset another line has, or whose offset cannot be
    that of a record in `rec` of `size` bytes.
    """
    keys, offsets = _parse(idx)
    _check_offsets(idx, rec, size, keys, offsets)
    _check_repeats(idx, rec, keys, offsets)
    return keys, *_sort(idx, keys, offsets)


def _parse(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return keys and offsets of an index file as int64 arrays, in file order: 5.8 million lines take half a second."""
    with open_record_file(path) as file, as_record_error(path):
        text = file.read()
    if not text:
        raise RecordError(f"{path}: the index is empty; copy it again")
    if b"\r" in text:
        text = text.replace(b"\r\n", b"\n")
    whole = text.endswith(b"\n")
    if not whole:
        text += b"\n"
    # numpy's parser takes any white space: first see that there are digits, a tab, digits, a newline, digits, ...
    characters = np.frombuffer(text, np.uint8)
    ends = np.flatnonzero((characters < ord("0")) | (characters > ord("9")))
    digits = np.diff(ends, prepend=-1) - 1
    separators = characters[ends]
    sound = (separators[0::2] == ord("\t")).all() and (separators[1::2] == ord("\n")).all() and len(ends) % 2 == 0
    if not sound or digits.min() < 1 or digits.max() > 18:
        raise _bad_line(path, text)
    keys, offsets = np.ascontiguousarray(np.fromstring(text, np.int64, sep=" ").reshape(-1, 2).T)
    if not whole and len(keys) > 1 and offsets[-1] <= offsets[:-1].max():
        # The number may have lost digits and so name another record. One beyond all others cannot.
        line = f"{path}, line {len(keys)}: key {keys[-1]}, offset {offsets[-1]}"
        raise RecordError(f"{line}: the line has no end, the file is cut short: copy it again")
    return keys, offsets


def _bad_line(path: Path, text: bytes) -> RecordError:
    lines = enumerate(text.split(b"\n"), 1)
    number, line = next((number, line) for number, line in lines if not _INDEX_LINE.fullmatch(line))
    shown = repr(line[:60])[1:]
    what = "a number is negative" if re.fullmatch(rb"-?\d+\t-?\d+", line) and b"-" in line else "not 'key<TAB>offset'"
    return RecordError(f"{path}, line {number}: {shown}: {what}; the file is damaged: copy it again")


def _check_offsets(idx: Path, rec: Path, size: int, keys: np.ndarray, offsets: np.ndarray) -> None:
    """See that each offset can be that of a record, so that a file cut short is found before the first read."""
    wrong = (offsets > size - PART_HEAD) | (offsets & 3 != 0)
    if wrong.any():
        line = int(wrong.argmax())
        key, offset = keys[line], offsets[line]
        what = "no record begins there" if offset & 3 else "that is at or past its end: it is cut short or another's"
        raise RecordError(
            f"{idx}, line {line + 1}: record {key} at byte {offset} of {rec} ({size} bytes): {what}; copy both again"
        )


def _check_repeats(idx: Path, rec: Path, keys: np.ndarray, offsets: np.ndarray) -> None:
    """See that no two keys name the same record."""
    if (offsets[1:] > offsets[:-1]).all():
        return
    order = np.argsort(offsets, kind="stable")
    same = np.flatnonzero(offsets[order[1:]] == offsets[order[:-1]])
    if same.size:
        first, second = order[same[0]], order[same[0] + 1]
        raise RecordError(
            f"{idx}, line {second + 1}: keys {keys[first]} and {keys[second]} stand at the same byte {offsets[first]}, "
            f"{same.size} of {len(keys)} lines repeat an offset; {reindex_hint(rec)}"
        )


def _sort(idx: Path, keys: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return both arrays in the order of the keys, which must differ."""
    if (keys[1:] > keys[:-1]).all():
        return keys, offsets
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    same = np.flatnonzero(ordered[1:] == ordered[:-1])
    if same.size:
        first, second = order[same[0]], order[same[0] + 1]
        raise RecordError(
            f"{idx}, line {second + 1}: key {keys[second]} (offset {offsets[second]}) stands in line {first + 1} too "
            f"(offset {offsets[first]}): copy the file again"
        )
    return ordered, offsets[order]
