"""Reads MXNet's indexed record files by key, and reports damage by file, key and offset (format: record_format.py)."""

import hashlib
import mmap
import os
import weakref
from collections.abc import Callable, Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike

from utils.datasets.recordio.index import (
    PART_HEADER_SIZE,
    RecordError,
    as_record_error,
    open_record_file,
    read_index,
    reindex_hint,
)
from utils.datasets.recordio.record_format import IMAGE_HEADER, RecordHeader, split_parts, unpack
from utils.datasets.recordio.scan import LENGTH_LIMIT, MAGIC, MAGIC_BYTES, PART_HEADER, check_indexed_ends

_CHUNK = 1 << 13  # records whose headers are read at once, in a large file some 40 MB
_N_SAMPLES, _SAMPLE_SIZE = 256, 4096  # samples of a file's content that are compared, and bytes in each
_RECOPY = "the file is cut short or damaged: copy it again"


class IndexedRecordReader:
    """Random access to the records of a `rec` file by the keys of its `idx` file. Offsets are in bytes.

    Each process memory-maps the file on first use; after a fork, or in a spawned process, nothing is shared with the
    parent. Each access first checks that the open file is unchanged: reading beyond the end of a file that has shrunk
    would kill the process with SIGBUS, and other content would not match the index. Where only the time stamp is new,
    samples from all over the file are compared. Replacing the file on disk is harmless: the mapped one stays open.
    Every failure is a UserError that names the file, and also key and offset where it concerns a record.
    """

    keys: np.ndarray  # (N,) int64, in the order of the index file

    def __init__(self, rec: str | os.PathLike[str], idx: str | os.PathLike[str]) -> None:
        self.rec, self.idx = Path(rec).absolute(), Path(idx).absolute()
        self._map: mmap.mmap | None = None
        self._descriptor = -1  # the mapped file's
        self._pid, self._closed = -1, False  # _pid: the process that opened _map
        with open_record_file(self.rec) as file:
            self._identity = _file_identity(file.fileno())
            self._size = os.fstat(file.fileno()).st_size
            self.keys, self._sorted_keys, offsets = read_index(self.idx, self.rec, self._size)
            check_indexed_ends(file.fileno(), self.rec, self.idx, int(offsets.min()), int(offsets.max()), self._size)
            with as_record_error(self.rec):
                self._content = _digest_samples(file.fileno(), self._size)
        self.keys.flags.writeable = False
        self._offsets = np.append(offsets, self._size)  # the last record ends at the end of the file
        self._first, self._last = int(self._sorted_keys[0]), int(self._sorted_keys[-1])
        self._contiguous = self._last - self._first == len(self.keys) - 1

    def __len__(self) -> int:
        return len(self.keys)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_map": None, "_pid": -1}

    def close(self) -> None:
        """Unmaps the file. Reading after that is an error. May be called twice."""
        if self._map is not None:
            self._map.close()
        self._map, self._closed = None, True

    def location(self, key: int) -> str:
        """Returns 'FILE: record KEY at byte OFFSET', for error messages."""
        return f"{self.rec}: record {key} at byte {self._offsets.item(self._position(key))}"

    def read(self, key: int) -> bytes:
        """Returns the payload of record `key`. Raises RecordError where it is missing or damaged."""
        position = self._position(key)
        offset = self._offsets.item(position)
        data = self._mapped()
        parts: list[bytes] = []
        total = 0
        while True:
            cflag, start, end, next_offset = self._parse_part(data, key, offset, len(parts))
            total += end - start + 4 * bool(parts)
            if total >= LENGTH_LIMIT:
                raise self._damaged(key, f"its parts add up to {total} bytes, more than allowed")
            parts.append(data[start:end])
            offset = next_offset
            if cflag in (0, 3):
                break
        # A damaged length or cflag makes a record end early or late. Ending where the next record begins proves that a
        # single part is complete, except for the padding; else check the content of the parts and what follows them.
        proved = len(parts) == 1 and offset == self._offsets.item(position + 1)
        complete = proved or _is_complete(parts, data[offset : offset + PART_HEADER_SIZE])
        if data[end:offset].strip(b"\0") or not complete:
            raise self._damaged(key, f"it ends at byte {end}, but no record does")
        return MAGIC_BYTES.join(parts)

    def _parse_part(self, data: mmap.mmap, key: int, offset: int, n_before: int) -> tuple[int, int, int, int]:
        """Returns the cflag of the part at `offset`, the start and end of its payload, and the end of its padding.

        n_before: number of parts of record `key` before this one. Raises RecordError where no such part is there.
        """
        size = self._size
        if offset + PART_HEADER_SIZE > size:
            problem = "the final part is missing" if n_before else "no part fits"
            raise self._damaged(key, f"{problem} before the end of the file at byte {size}")
        magic, word = PART_HEADER.unpack_from(data, offset)
        cflag, length = word >> 29, word & (LENGTH_LIMIT - 1)
        start = offset + PART_HEADER_SIZE
        end = start + length
        next_offset = end + (-length & 3)
        if magic != MAGIC:
            problem = f"byte {offset} should begin its part {n_before + 1}" if n_before else "no record begins here"
            raise RecordError(
                f"{self.location(key)}: {problem}: magic {magic:#010x} instead of {MAGIC:#010x}",
                fix=f"the file is damaged or {self.idx} belongs to another one: copy both again",
            )
        if cflag not in ((2, 3) if n_before else (0, 1)):
            problem = f"the final part is missing: at byte {offset}" if n_before else "a first part should be here:"
            raise self._damaged(key, f"{problem} the part has cflag {cflag}")
        if next_offset > size:
            raise self._damaged(
                key, f"a payload of {length} bytes from byte {start} runs beyond the end of the file at byte {size}"
            )
        if cflag in (1, 2) and length % 4:
            problem = f"the part at byte {offset} of {length} bytes, not a multiple of four, cannot precede another"
            raise self._damaged(key, problem)
        return cflag, start, end, next_offset

    def _damaged(self, key: int, problem: str) -> RecordError:
        return RecordError(f"{self.location(key)}: {problem}", fix=_RECOPY)

    def read_image(self, key: int) -> tuple[RecordHeader, bytes]:
        """Returns the header and the encoded image of image record `key`. Raises RecordError as `read` does."""
        record = self.read(key)
        try:
            return unpack(record)
        except RecordError as error:
            raise RecordError(f"{self.location(key)}: {error.problem}", error.fix) from None

    def labels(self, keys: ArrayLike) -> np.ndarray:
        """Returns the first label of each of the N image records `keys`: (N,) float32. Reads only their headers."""
        return np.concatenate([np.empty(0, np.float32), *self._iter_labels(np.asarray(keys, np.int64))])

    def _iter_labels(self, keys: np.ndarray) -> Iterator[np.ndarray]:
        """Yields the first labels of the records `keys` by chunks, each (n,) float32."""
        offsets = self._offsets_of(keys)
        for begin in range(0, len(keys), _CHUNK):
            labels, valid = self._single_part_labels(offsets[begin : begin + _CHUNK])
            # A record of several parts is read in full; so is a damaged one, for its error message.
            for i in np.flatnonzero(~valid):
                labels[i] = np.ravel(self.read_image(int(keys[begin + i]))[0].label)[0]
            yield labels

    def check_complete(self) -> None:
        """Raises RecordError where the index lacks a record between two of its own. Reads all records' headers."""
        for _ in self._iter_completeness():
            pass

    def labels_of_complete(self, keys: np.ndarray, on_chunk: Callable[[], None]) -> np.ndarray:
        """Returns what `labels` returns, after the checks of `check_complete`. Reads the file once for both.

        on_chunk: called after every 8,192 records; an exception in it ends the reading.
        """
        parts = [np.empty(0, np.float32)]
        for part, _ in zip_longest(self._iter_labels(keys), self._iter_completeness()):
            if part is not None:
                parts.append(part)
            on_chunk()
        return np.concatenate(parts)

    def _iter_completeness(self) -> Iterator[None]:
        """Makes the checks of `check_complete` chunk by chunk."""
        indexed = np.sort(self._offsets)
        for begin in range(0, len(self), _CHUNK):
            words = np.frombuffer(self._mapped(), "<u4", self._size // 4)
            offsets = self._offsets[:-1][begin : begin + _CHUNK]
            length = words.take(offsets // 4 + 1, mode="clip").astype(np.int64)
            ends = offsets + PART_HEADER_SIZE + (length + 3 & ~3)
            # Records of several parts (their length word has a cflag) are skipped: they end after their first part.
            ends = ends[(length < LENGTH_LIMIT) & (ends < self._size)]
            ends = ends[words.take(ends // 4, mode="clip") == MAGIC]
            unknown = ends[indexed[np.searchsorted(indexed, ends)] != ends]
            if unknown.size:
                raise RecordError(
                    f"{self.idx}: the record at byte {unknown[0]} of {self.rec} is not in it",
                    fix=reindex_hint(self.rec),
                )
            yield

    def _single_part_labels(self, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the first labels of the N records at `offsets`, and which records are valid and of a single part.

        Shapes (N,) float32 and (N,) bool.
        """
        words = np.frombuffer(self._mapped(), "<u4", self._size // 4)
        first_word = offsets // 4
        # The words of a part and of its image header: magic, length, flag, label, id (2), id2 (2), labels.
        magic, length, flag, label, array_label = (words.take(first_word + i, mode="clip") for i in (0, 1, 2, 3, 8))
        labels = np.where(flag == 0, label, array_label).view(np.float32)
        payload_offset = offsets + PART_HEADER_SIZE
        fits = (IMAGE_HEADER.size + 4 * flag.astype(np.int64) <= length) & (payload_offset + length <= self._size)
        return labels, (magic == MAGIC) & (length < LENGTH_LIMIT) & fits

    def _position(self, key: int) -> int:
        """Returns the position of `key` in the sorted keys. Raises RecordError for an unknown key."""
        if not self._first <= key <= self._last:
            raise self._unknown_key_error(key)
        if self._contiguous:
            return int(key) - self._first
        position = int(self._sorted_keys.searchsorted(key))
        if self._sorted_keys[position] != key:
            raise self._unknown_key_error(key)
        return position

    def _offsets_of(self, keys: np.ndarray) -> np.ndarray:
        positions = np.minimum(np.searchsorted(self._sorted_keys, keys), len(self) - 1)
        unknown = np.flatnonzero(self._sorted_keys[positions] != keys)
        if unknown.size:
            raise self._unknown_key_error(int(keys[unknown[0]]))
        return self._offsets[positions]

    def _unknown_key_error(self, key: int) -> RecordError:
        return RecordError(
            f"{self.rec}: no record {key}: {self.idx} has {len(self)} keys from {self._first} to {self._last}"
        )

    def _mapped(self) -> mmap.mmap:
        """Returns this process's map of the file, after checking that the file has not changed since construction."""
        if self._map is None or self._pid != os.getpid():
            self._map = self._open()
            self._pid = os.getpid()
        self._check(self._descriptor, "was written to while in use", fix="copy it again")
        return self._map

    def _open(self) -> mmap.mmap:
        if self._closed:
            raise RecordError(f"{self.rec}: the reader is closed")
        with open_record_file(self.rec) as file:
            self._check(file.fileno(), "was replaced or written to while in use", fix="start again")
            opened = mmap.mmap(file.fileno(), self._size, access=mmap.ACCESS_READ)
            self._descriptor = os.dup(file.fileno())  # the map holds a descriptor too, but does not expose it
            weakref.finalize(opened, os.close, self._descriptor)
            return opened

    def _check(self, file: int, problem: str, fix: str) -> None:
        """Raises RecordError unless the open file is the one, and has the content, that was read at first.

        problem, fix: of the error where the file has not become shorter.
        """
        identity = _file_identity(file)
        if identity == self._identity:
            return
        size = os.fstat(file).st_size
        if size < self._size:
            raise RecordError(f"{self.rec}: shrank from {self._size} to {size} bytes while in use", fix="copy it again")
        with as_record_error(self.rec):
            if size > self._size or _digest_samples(file, size) != self._content:
                raise RecordError(f"{self.rec}: {problem}", fix)
        self._identity = identity  # touched, or replaced by a copy of itself


def _file_identity(file: int) -> tuple[int, ...]:
    """Returns device, inode, size and time of change: they differ for another file, and after a write to this one."""
    status = os.fstat(file)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _digest_samples(file: int, size: int) -> bytes:
    """Returns the SHA-256 of samples from all over an open file, or of all its content up to 1 MiB.

    Another file, or one whose records have moved, differs in some sample. A small edit in place can miss them all.
    """
    digest = hashlib.sha256()
    for start in np.linspace(0, max(0, size - _SAMPLE_SIZE), _N_SAMPLES).astype(np.int64).tolist():
        digest.update(os.pread(file, _SAMPLE_SIZE, start))
    return digest.digest()


def _is_complete(parts: list[bytes], next_header: bytes) -> bool:
    """Whether no part begins within `parts`, and after them a record begins, the file ends, or zeros follow."""
    if any(len(split_parts(part)) > 1 for part in parts):
        return False
    if next_header in (b"", bytes(PART_HEADER_SIZE)):
        return True
    if next_header[:4] != MAGIC_BYTES or len(next_header) != PART_HEADER_SIZE:
        return False
    return next_header[7] >> 5 in (0, 1)  # the cflag
