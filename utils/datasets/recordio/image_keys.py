"""The keys of the images in a record file: all, or, in the MS1MV2 layout, those that record 0 announces."""

import math

import numpy as np

from utils.datasets.recordio.index import RecordError, reindex_hint
from utils.datasets.recordio.reader import IndexedRecordReader
from utils.datasets.recordio.record_format import Header

EXACT = 1 << 24  # float32 holds every whole number below it


def find_image_keys(reader: IndexedRecordReader) -> tuple[np.ndarray, int]:
    """Return the keys of the images, in the order of the index: (N,) int64; and how many that record 0 announces are
    not in the index, as tools leave them out that could not read a photo.

    Record 0 of the MS1MV2 layout is a header: no image, its labels are the end of the image keys, which begin with 1,
    and the end of the identity keys behind them. In a plain file every record is an image.

    Raises RecordError where the header is damaged, or the index ends before the images that it announces.
    """
    keys = reader.keys
    if 0 not in keys:
        return keys, 0
    header, payload = reader.read_image(0)
    if header.flag == 0 or payload:
        return keys, 0
    announced = float(np.ravel(header.label)[0])
    if not (math.isfinite(announced) and announced.is_integer() and announced >= 1):
        raise RecordError(
            f"{reader.where(0)}: the header should announce where the keys of the images end, a whole number, but has "
            f"{announced:g}; copy the file again"
        )
    end = find_image_end(reader, int(announced))
    found = keys[(keys >= 1) & (keys < end)]
    return found, _count_missing(reader, found, end)


def find_image_end(reader: IndexedRecordReader, announced: int) -> int:
    """Return the key behind the last image's.

    announced: the same as the header has it, a float32: from 2^24 on it is rounded, and the records that are near say
    which are images and which are identities.
    """
    if announced < EXACT:
        return announced
    off = int(np.spacing(np.float32(announced)))
    near = np.sort(reader.keys[(reader.keys >= announced - off) & (reader.keys <= announced + off)]).tolist()
    behind = near[-1] + 1 if near else announced  # where there are no identities
    return next((key for key in near if is_identity(*reader.read_image(key))), behind)


def is_identity(header: Header, payload: bytes) -> bool:
    """Tell whether a record stands for an identity: no image, but where the keys of its images begin and end."""
    return header.flag == 2 and not payload


def _count_missing(reader: IndexedRecordReader, found: np.ndarray, end: int) -> int:
    """Return how many of the keys from 1 to end - 1 were not found. Raise RecordError where the index ends before them:
    it was cut short, and the file with it."""
    missing = end - 1 - len(found)
    if missing and found.max(initial=0) < end - 1 and not (reader.keys >= end).any():
        raise RecordError(
            f"{reader.idx}: record 0 of {reader.rec} announces {end - 1} images, {missing} of them are not in the "
            f"index, which ends with key {reader.keys.max()}; {reindex_hint(reader.rec)}"
        )
    return missing
