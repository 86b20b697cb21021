"""Finds the keys of the images in a record file: all keys, or in the MS1MV2 layout those that record 0 announces."""

import math

import numpy as np

from utils.datasets.recordio.index import RecordError, reindex_hint
from utils.datasets.recordio.reader import IndexedRecordReader
from utils.datasets.recordio.record_format import RecordHeader

EXACT = 1 << 24  # float32 holds every integer up to here


def find_image_keys(reader: IndexedRecordReader) -> tuple[np.ndarray, int]:
    """Returns the keys of the images in index order, (N,) int64, and the number of announced images not in the index.

    Some tools leave photos that they could not read out of the index, so missing images are not an error.

    In the MS1MV2 layout record 0 holds no image; its labels are the end of the image keys, which begin with 1, and the
    end of the identity keys after them. In a plain file every record is an image.

    Raises RecordError where record 0 is damaged, or where the index ends before the announced images do.
    """
    keys = reader.keys
    if 0 not in keys:
        return keys, 0
    header, payload = reader.read_image(0)
    if header.flag == 0 or payload:
        return keys, 0
    announced_end = float(np.ravel(header.label)[0])
    if not (math.isfinite(announced_end) and announced_end.is_integer() and announced_end >= 1):
        raise RecordError(
            f"{reader.location(0)}: its label should be the end of the image keys, a whole number from 1, but is "
            f"{announced_end:g}",
            fix="copy the file again",
        )
    end = find_image_end(reader, int(announced_end))
    image_keys = keys[(keys >= 1) & (keys < end)]
    return image_keys, _count_missing(reader, image_keys, end)


def find_image_end(reader: IndexedRecordReader, announced_end: int) -> int:
    """Returns the key after the last image.

    announced_end: that key as record 0 holds it, a float32. From 2^24 on it is rounded; the records near it then tell
    where the images end and the identities begin.
    """
    if announced_end < EXACT:
        return announced_end
    rounding = int(np.spacing(np.float32(announced_end)))
    near = np.sort(
        reader.keys[(reader.keys >= announced_end - rounding) & (reader.keys <= announced_end + rounding)]
    ).tolist()
    default = near[-1] + 1 if near else announced_end  # for files without identities
    return next((key for key in near if is_identity(*reader.read_image(key))), default)


def is_identity(header: RecordHeader, payload: bytes) -> bool:
    """Whether a record describes an identity: it has no image, only the first and the end key of its images."""
    return header.flag == 2 and not payload


def _count_missing(reader: IndexedRecordReader, image_keys: np.ndarray, end: int) -> int:
    """Returns how many keys from 1 to end - 1 are missing.

    Raises RecordError where the index ends before `end`: the index was cut short, and the record file with it.
    """
    missing = end - 1 - len(image_keys)
    if missing and image_keys.max(initial=0) < end - 1 and not (reader.keys >= end).any():
        raise RecordError(
            f"{reader.idx}: record 0 of {reader.rec} announces {end - 1} images, {missing} of them are not in the "
            f"index, which ends with key {reader.keys.max()}",
            fix=reindex_hint(reader.rec),
        )
    return missing
