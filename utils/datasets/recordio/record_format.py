"""The format of MXNet's indexed record files (train.rec and train.idx), and a writer that does not need MXNet.

The layout is that of dmlc-core's RecordIO (src/recordio.cc) and of MXNet 1.9.1 (python/mxnet/recordio.py). A record is
one or more parts, each at an offset that is a multiple of four:

    uint32 magic | uint32 (cflag << 29) | length | payload | zeros up to a multiple of four

cflag is 0 for a record of a single part, else 1 for the first, 2 for a middle and 3 for the last part. The writer cuts
a payload wherever it holds the magic at a multiple of four and drops the magic; the reader puts it back. So in a file
the magic is at a multiple of four only where a part begins. The index has one line 'key<TAB>offset' per record.
"""

import os
import struct
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from utils.datasets.recordio.index import RecordError, as_record_error
from utils.datasets.recordio.scan import LENGTH_LIMIT, MAGIC, MAGIC_BYTES, PART_HEADER

IMAGE_HEADER = struct.Struct("<IfQQ")  # flag, label, id, id2


class RecordHeader(NamedTuple):
    """The header of an image record. `flag` is the number of labels in the array `label`, or 0 for a single number."""

    flag: int
    label: float | np.ndarray
    id: int
    id2: int


def pack(header: RecordHeader | tuple[int, Any, int, int], payload: bytes) -> bytes:
    """Returns the image header followed by `payload`, byte for byte as mx.recordio.pack does.

    Ignores `header.flag`: the label decides what is written, a number (flag 0) or a non-empty array. Raises RecordError
    for a header that the format cannot hold.
    """
    header = RecordHeader(*header)
    label = header.label
    if isinstance(label, Real):
        flag, number, labels = 0, float(label), b""
    else:
        array = np.asarray(label, dtype="<f4")
        if array.size == 0:
            raise RecordError("an image header needs at least one label: an empty array reads back as the number 0")
        flag, number, labels = array.size, 0.0, array.tobytes()
    try:
        return IMAGE_HEADER.pack(flag, number, header.id, header.id2) + labels + payload
    except (struct.error, OverflowError) as error:
        raise RecordError(f"image header (label {label}, id {header.id}, id2 {header.id2}): {error}") from error


def unpack(record: bytes, source: str = "image record") -> tuple[RecordHeader, bytes]:
    """Splits an image record into its header and the encoded image, as mx.recordio.unpack does.

    An array of labels is float32. `source` names the record in errors; `IndexedRecordReader.read_image` adds file, key
    and offset. Raises RecordError where the record is too short for the header or its labels.
    """
    if len(record) < IMAGE_HEADER.size:
        raise RecordError(f"{source}: {len(record)} bytes are too few for an image header of {IMAGE_HEADER.size}")
    flag, label, id_, id2 = IMAGE_HEADER.unpack_from(record)
    start = IMAGE_HEADER.size + 4 * flag
    if start > len(record):
        raise RecordError(
            f"{source}: the image header announces {flag} labels, the record has only {len(record)} bytes"
        )
    if flag:
        label = np.frombuffer(record, "<f4", flag, IMAGE_HEADER.size).copy()  # a view would keep the record alive
    return RecordHeader(flag, label, id_, id2), record[start:]


class IndexedRecordWriter:
    """Writes records to a `rec` file and their keys and offsets to an `idx` file, as MXIndexedRecordIO does."""

    def __init__(self, rec: str | os.PathLike[str], idx: str | os.PathLike[str]) -> None:
        self.rec, self.idx = Path(rec), Path(idx)
        self._keys: set[int] = set()
        self._offset = 0
        with as_record_error(self.rec):
            self._rec_file = self.rec.open("wb")
        with as_record_error(self.idx):
            self._idx_file = self.idx.open("wb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Flushes and closes both files. May be called twice."""
        with as_record_error(self.rec):
            self._rec_file.close()
        with as_record_error(self.idx):
            self._idx_file.close()

    def write(self, key: int, record: bytes) -> None:
        """Appends `record` under `key`.

        Raises RecordError for a key that is negative or already written, and for a record of 2^29 bytes or more.
        """
        location = f"{self.rec}: record {key} at byte {self._offset}"
        if key < 0 or key in self._keys:
            raise RecordError(f"{location}: the key is {'negative' if key < 0 else 'written already'}")
        if len(record) >= LENGTH_LIMIT:
            raise RecordError(f"{location}: {len(record)} bytes are too long, a record is shorter than {LENGTH_LIMIT}")
        parts = split_parts(record)
        cflags = [0] if len(parts) == 1 else [1] + [2] * (len(parts) - 2) + [3]
        data = b"".join(
            PART_HEADER.pack(MAGIC, cflag << 29 | len(part)) + part + bytes(-len(part) & 3)
            for cflag, part in zip(cflags, parts, strict=True)
        )
        with as_record_error(self.rec):
            self._rec_file.write(data)
        with as_record_error(self.idx):
            self._idx_file.write(b"%d\t%d\n" % (key, self._offset))
        self._keys.add(key)
        self._offset += len(data)


def split_parts(record: bytes) -> list[bytes]:
    """Cuts `record` at each magic at a multiple of four. Returns the parts without these magics."""
    parts, start, found = [], 0, record.find(MAGIC_BYTES)
    while found >= 0:
        aligned = found % 4 == 0
        if aligned:
            parts.append(record[start:found])
            start = found + 4
        found = record.find(MAGIC_BYTES, found + (4 if aligned else 1))
    return [*parts, record[start:]]
