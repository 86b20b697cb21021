"""Reads and checks the index of a record file: its keys and byte offsets."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from utils.errors import UserError
from utils.filesystem import open_regular_file

PART_HEADER_SIZE = 8  # bytes before the payload of a part: magic and length

_INDEX_LINE = re.compile(rb"\d{1,18}\t\d{1,18}")  # 18 digits always fit an int64


class RecordError(UserError):
    """A record or index file that is missing or damaged, or a record that it does not hold."""


@contextmanager
def as_record_error(path: Path) -> Iterator[None]:
    """Translates OSError into a RecordError that names the file."""
    try:
        yield
    except OSError as error:
        raise RecordError(f"{path}: {error.strerror or error}") from error


def open_record_file(path: Path) -> BinaryIO:
    """Opens a record or index file for reading. Raises UserError where it is missing or not a regular file."""
    with as_record_error(path):
        return open_regular_file(path)


def reindex_hint(rec: Path) -> str:
    """Returns the advice for an index that does not match its record file."""
    return f"copy both again, or rebuild the index: python data/reindex.py --force {rec}"


def read_index(idx: Path, rec: Path, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the keys in file order, the keys in ascending order, and the offsets of the latter; each (N,) int64.

    Raises RecordError for a malformed line, a repeated key or offset, or an offset at which `rec`, a file of `size`
    bytes, cannot have a record.
    """
    keys, offsets = _parse(idx)
    _check_offsets(idx, rec, size, keys, offsets)
    _check_repeats(idx, rec, keys, offsets)
    return keys, *_sort(idx, keys, offsets)


def _parse(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Returns the keys and offsets in file order, each (N,) int64. 5.8 million lines take half a second."""
    with open_record_file(path) as file, as_record_error(path):
        text = file.read()
    if not text:
        raise RecordError(f"{path}: the index is empty", fix="copy it again")
    if b"\r" in text:
        text = text.replace(b"\r\n", b"\n")
    is_terminated = text.endswith(b"\n")
    if not is_terminated:
        text += b"\n"
    # numpy's parser accepts any white space: first check for digits, a tab, digits, a newline, digits, ...
    characters = np.frombuffer(text, np.uint8)
    ends = np.flatnonzero((characters < ord("0")) | (characters > ord("9")))
    digits = np.diff(ends, prepend=-1) - 1
    separators = characters[ends]
    well_formed = (separators[0::2] == ord("\t")).all() and (separators[1::2] == ord("\n")).all() and len(ends) % 2 == 0
    if not well_formed or digits.min() < 1 or digits.max() > 18:
        raise _bad_line(path, text)
    keys, offsets = np.ascontiguousarray(np.fromstring(text, np.int64, sep=" ").reshape(-1, 2).T)
    if not is_terminated and len(keys) > 1 and offsets[-1] <= offsets[:-1].max():
        # The offset may have lost digits and so be that of another record. One beyond all others cannot.
        line = f"{path}, line {len(keys)}: key {keys[-1]}, offset {offsets[-1]}"
        raise RecordError(f"{line}: the line does not end, the file is cut short: copy it again")
    return keys, offsets


def _bad_line(path: Path, text: bytes) -> RecordError:
    lines = enumerate(text.split(b"\n"), 1)
    number, line = next((number, line) for number, line in lines if not _INDEX_LINE.fullmatch(line))
    shown = repr(line[:60])[1:]
    is_negative = re.fullmatch(rb"-?\d+\t-?\d+", line) and b"-" in line
    problem = "a number is negative" if is_negative else "not 'key<TAB>offset'"
    return RecordError(f"{path}, line {number}: {shown}: {problem}", fix="the file is damaged: copy it again")


def _check_offsets(idx: Path, rec: Path, size: int, keys: np.ndarray, offsets: np.ndarray) -> None:
    """Checks that a record can begin at each offset, so that a truncated file is found before the first read."""
    wrong = (offsets > size - PART_HEADER_SIZE) | (offsets & 3 != 0)
    if wrong.any():
        line = int(wrong.argmax())
        key, offset = keys[line], offsets[line]
        problem = "no record begins there" if offset & 3 else "that is at or past its end: it is cut short or another's"
        raise RecordError(
            f"{idx}, line {line + 1}: record {key} at byte {offset} of {rec} ({size} bytes): {problem}",
            fix="copy both again",
        )


def _check_repeats(idx: Path, rec: Path, keys: np.ndarray, offsets: np.ndarray) -> None:
    """Checks that no two keys have the same offset."""
    if (offsets[1:] > offsets[:-1]).all():
        return
    order = np.argsort(offsets, kind="stable")
    repeated = np.flatnonzero(offsets[order[1:]] == offsets[order[:-1]])
    if repeated.size:
        first, second = order[repeated[0]], order[repeated[0] + 1]
        raise RecordError(
            f"{idx}, line {second + 1}: keys {keys[first]} and {keys[second]} have the same offset {offsets[first]}, "
            f"{repeated.size} of {len(keys)} lines repeat an offset",
            fix=reindex_hint(rec),
        )


def _sort(idx: Path, keys: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns both arrays in ascending order of the keys. Raises RecordError where two keys are equal."""
    if (keys[1:] > keys[:-1]).all():
        return keys, offsets
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    repeated = np.flatnonzero(ordered[1:] == ordered[:-1])
    if repeated.size:
        first, second = order[repeated[0]], order[repeated[0] + 1]
        raise RecordError(
            f"{idx}, line {second + 1}: key {keys[second]} (offset {offsets[second]}) is in line {first + 1} too "
            f"(offset {offsets[first]}): copy the file again"
        )
    return ordered, offsets[order]
