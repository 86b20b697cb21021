"""Reads the indexed record files of MXNet by key, and names what is wrong with them (format: record_format.py)."""

import hashlib
import mmap
import os
import weakref
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike

from utils.datasets.recordio.index import (
    PART_HEAD,
    RecordError,
    as_record_error,
    open_record_file,
    read_index,
    reindex_hint,
)
from utils.datasets.recordio.record_format import IMAGE_HEADER, Header, split_parts, unpack
from utils.datasets.recordio.scan import LENGTH_LIMIT, MAGIC, MAGIC_BYTES, PART, check_indexed_ends

_LABELS_AT_ONCE = 1 << 16
_SAMPLES, _SAMPLE = 256, 4096  # of a file's content: how many, and the bytes of each
_RECOPY = "the file is cut short or damaged: copy it again"


class IndexedRecordReader:
    """Random access to the records of a `rec` file by the keys of its `idx` file. Offsets are in bytes.

    The file is memory-mapped on first use, anew in every process: after a fork or in a spawned process nothing is
    shared with the parent. Before each access the opened file is checked: to read beyond the end of one that has shrunk
    kills the process with SIGBUS, and one with other content is not what the index is of. A new time stamp alone does
    no harm: then samples from all over the file are compared. Nor does a file that takes the place of this one: what is
    mapped stays. Every failure is a UserError that names the file, and key and offset where it is about a record.
    """

    keys: np.ndarray  # (N,) int64, in the order of the index file

    def __init__(self, rec: str | os.PathLike[str], idx: str | os.PathLike[str]) -> None:
        self.rec, self.idx = Path(rec).absolute(), Path(idx).absolute()
        self._map: mmap.mmap | None = None
        self._descriptor = -1  # of the mapped file
        self._pid, self._closed = -1, False  # the process that _map belongs to
        with open_record_file(self.rec) as file:
            self._file = _identity(file.fileno())
            self._size = os.fstat(file.fileno()).st_size
            self.keys, self._sorted_keys, offsets = read_index(self.idx, self.rec, self._size)
            check_indexed_ends(file.fileno(), self.rec, self.idx, int(offsets.min()), int(offsets.max()), self._size)
            with as_record_error(self.rec):
                self._content = _digest_samples(file.fileno(), self._size)
        self.keys.flags.writeable = False
        self._offsets = np.append(offsets, self._size)  # so each has one behind it
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
        """Unmap the file. A later read is an error. To close twice is allowed."""
        if self._map is not None:
            self._map.close()
        self._map, self._closed = None, True

    def where(self, key: int) -> str:
        """Return 'FILE: record KEY at byte OFFSET', for messages."""
        return f"{self.rec}: record {key} at byte {self._offsets.item(self._position(key))}"

    def read(self, key: int) -> bytes:
        """Return the payload of record `key`."""
        position = self._position(key)
        at = self._offsets.item(position)
        data, size = self._mapped(), self._size
        parts: list[bytes] = []
        total = 0
        while True:
            if at + PART_HEAD > size:
                what = "the final part is missing" if parts else "no part fits"
                raise RecordError(f"{self.where(key)}: {what} before the end of the file at byte {size}; {_RECOPY}")
            magic, word = PART.unpack_from(data, at)
            cflag, length = word >> 29, word & (LENGTH_LIMIT - 1)
            start = at + PART_HEAD
            end = start + length
            after = end + (-length & 3)
            if magic != MAGIC:
                what = f"byte {at} should begin its part {len(parts) + 1}" if parts else "no record begins here"
                raise RecordError(
                    f"{self.where(key)}: {what}: magic {magic:#010x} instead of {MAGIC:#010x}; the file is damaged or "
                    f"{self.idx} is of another one: copy both again"
                )
            if cflag not in ((2, 3) if parts else (0, 1)):
                what = f"the final part is missing: at byte {at}" if parts else "a first part should stand here:"
                raise RecordError(f"{self.where(key)}: {what} the part has cflag {cflag}; {_RECOPY}")
            if after > size:
                what = f"a payload of {length} bytes from byte {start} runs beyond the end of the file at byte {size}"
                raise RecordError(f"{self.where(key)}: {what}; {_RECOPY}")
            if cflag in (1, 2) and length % 4:
                what = f"the part at byte {at} of {length} bytes, not a multiple of four, cannot have another behind it"
                raise RecordError(f"{self.where(key)}: {what}; {_RECOPY}")
            total += length + 4 * bool(parts)
            if total >= LENGTH_LIMIT:
                raise RecordError(f"{self.where(key)}: its parts add up to {total} bytes, more than allowed; {_RECOPY}")
            parts.append(data[start:end])
            at = after
            if cflag in (0, 3):
                break
        # Damage to a length or a cflag lets a record end early or late. That it ends where the next key's begins proves
        # a single part right but for the padding; else see what is within and behind it.
        proved = len(parts) == 1 and at == self._offsets.item(position + 1)
        if data[end:after].strip(b"\0") or not (proved or _is_whole(parts, data[at : at + PART_HEAD])):
            what = f"it ends at byte {end}, but no record does"
            raise RecordError(f"{self.where(key)}: {what}; {_RECOPY}")
        return MAGIC_BYTES.join(parts)

    def read_image(self, key: int) -> tuple[Header, bytes]:
        """Return header and encoded image of the image record `key`."""
        record = self.read(key)
        try:
            return unpack(record)
        except RecordError as error:
            raise RecordError(f"{self.where(key)}: {error}") from None

    def labels(self, keys: ArrayLike) -> np.ndarray:
        """Return the first label of each of the image records `keys`: float32, (N,). Only headers are read."""
        wanted = np.asarray(keys, np.int64)
        offsets = self._offsets_of(wanted)
        labels = np.empty(len(wanted), np.float32)
        for begin in range(0, len(wanted), _LABELS_AT_ONCE):
            chunk = slice(begin, begin + _LABELS_AT_ONCE)
            labels[chunk], plain = self._plain_labels(offsets[chunk])
            # A record of several parts is read in full; so is one that is wrong, to say what is wrong with it.
            for i in begin + np.flatnonzero(~plain):
                labels[i] = np.ravel(self.read_image(int(wanted[i]))[0].label)[0]
        return labels

    def check_complete(self) -> None:
        """Raise RecordError where a record of the file stands between two of the index. Reads the head of each."""
        words = np.frombuffer(self._mapped(), "<u4", self._size // 4)
        indexed = np.sort(self._offsets)
        for begin in range(0, len(self), _LABELS_AT_ONCE):
            offsets = self._offsets[:-1][begin : begin + _LABELS_AT_ONCE]
            length = words.take(offsets // 4 + 1, mode="clip").astype(np.int64)
            ends = offsets + PART_HEAD + (length + 3 & ~3)
            # A record of several parts (its length word has a cflag) is left out: its end is not that of its first.
            ends = ends[(length < LENGTH_LIMIT) & (ends < self._size)]
            ends = ends[words.take(ends // 4, mode="clip") == MAGIC]
            unknown = ends[indexed[np.searchsorted(indexed, ends)] != ends]
            if unknown.size:
                raise RecordError(
                    f"{self.idx}: the record at byte {unknown[0]} of {self.rec} is not in it; {reindex_hint(self.rec)}"
                )

    def _plain_labels(self, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the first labels of the records at `offsets`, and which of them are sound and of a single part."""
        words = np.frombuffer(self._mapped(), "<u4", self._size // 4)
        at = offsets // 4
        # the words of a part and of its image header: magic, length, flag, label, id (2), id2 (2), labels
        magic, length, flag, label, first = (words.take(at + i, mode="clip") for i in (0, 1, 2, 3, 8))
        labels = np.where(flag == 0, label, first).view(np.float32)
        fits = (IMAGE_HEADER.size + 4 * flag.astype(np.int64) <= length) & (offsets + PART_HEAD + length <= self._size)
        return labels, (magic == MAGIC) & (length < LENGTH_LIMIT) & fits

    def _position(self, key: int) -> int:
        if not self._first <= key <= self._last:
            raise self._unknown(key)
        if self._contiguous:
            return int(key) - self._first
        at = int(self._sorted_keys.searchsorted(key))
        if self._sorted_keys[at] != key:
            raise self._unknown(key)
        return at

    def _offsets_of(self, keys: np.ndarray) -> np.ndarray:
        at = np.minimum(np.searchsorted(self._sorted_keys, keys), len(self) - 1)
        unknown = np.flatnonzero(self._sorted_keys[at] != keys)
        if unknown.size:
            raise self._unknown(int(keys[unknown[0]]))
        return self._offsets[at]

    def _unknown(self, key: int) -> RecordError:
        return RecordError(
            f"{self.rec}: no record {key}: {self.idx} has {len(self)} keys from {self._first} to {self._last}"
        )

    def _mapped(self) -> mmap.mmap:
        """Return this process's map of the file, which is checked to be as it was when the reader was made."""
        if self._map is None or self._pid != os.getpid():
            self._map = self._open()
            self._pid = os.getpid()
        self._check(self._descriptor, "was written to while in use; copy it again")
        return self._map

    def _open(self) -> mmap.mmap:
        if self._closed:
            raise RecordError(f"{self.rec}: the reader is closed")
        with open_record_file(self.rec) as file:
            self._check(file.fileno(), "was replaced or written to while in use; start again")
            opened = mmap.mmap(file.fileno(), self._size, access=mmap.ACCESS_READ)
            self._descriptor = os.dup(file.fileno())  # the map has one too, but keeps it to itself
            weakref.finalize(opened, os.close, self._descriptor)
            return opened

    def _check(self, file: int, otherwise: str) -> None:
        found = _identity(file)
        if found == self._file:
            return
        size = os.fstat(file).st_size
        if size < self._size:
            raise RecordError(f"{self.rec}: shrank from {self._size} to {size} bytes while in use; copy it again")
        with as_record_error(self.rec):
            if size > self._size or _digest_samples(file, size) != self._content:
                raise RecordError(f"{self.rec}: {otherwise}")
        self._file = found  # touched, or replaced by a copy of itself


def _identity(file: int) -> tuple[int, ...]:
    """Return what tells an open file from another of its name, and, but for a file that was touched, from a later
    state."""
    found = os.fstat(file)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _digest_samples(file: int, size: int) -> bytes:
    """Return a digest of samples from all over an open file; of a file up to 1 MiB, of all its content.

    Another file, or one whose records have moved, differs in some sample. An edit in place can lie between them.
    """
    digest = hashlib.sha256()
    for start in np.linspace(0, max(0, size - _SAMPLE), _SAMPLES).astype(np.int64).tolist():
        digest.update(os.pread(file, _SAMPLE, start))
    return digest.digest()


def _is_whole(parts: list[bytes], behind: bytes) -> bool:
    """Tell whether `parts` hold no begin of a part, and `behind` them a record begins, the file ends or has a hole."""
    if any(len(split_parts(part)) > 1 for part in parts):
        return False
    if behind in (b"", bytes(PART_HEAD)):
        return True
    return behind[:4] == MAGIC_BYTES and len(behind) == PART_HEAD and behind[7] >> 5 in (0, 1)  # the cflag
