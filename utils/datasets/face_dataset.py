"""The dataset of training images: a record file in the MS1MV2 layout, decoded by index."""

import copy
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np

from utils.datasets.alignment import SIZE
from utils.datasets.data_folder import check_training_files
from utils.datasets.image_dataset import MAX_CLASSES, ImageDataset
from utils.datasets.image_header import read_image_size
from utils.datasets.recordio import label_cache
from utils.datasets.recordio.image_keys import find_image_keys
from utils.datasets.recordio.index import RecordError, open_record_file
from utils.datasets.recordio.reader import IndexedRecordReader
from utils.errors import UserError
from utils.filesystem import fingerprint


class FaceDataset(ImageDataset):
    """The images of {folder}/train.rec, by index.

    In the MS1MV2 layout record 0 holds no image; its label is [end of the image keys, end of the identity keys]. In a
    plain file every record is an image.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        check_training_files(self.folder)
        self.reader = IndexedRecordReader(self.folder / "train.rec", self.folder / "train.idx")
        self.name, self.n_bytes = str(self.reader.rec), self.reader.rec.stat().st_size
        # n_missing: images that record 0 announces and the index lacks.
        self.keys, self.n_missing = find_image_keys(self.reader)
        if not len(self.keys):
            raise RecordError(f"{self.reader.rec}: no images")

    @cached_property
    def fingerprint(self) -> str:  # type: ignore[override]
        """SHA-256 that identifies the index and record files."""
        return fingerprint(self.reader.idx, self.reader.rec)

    @cached_property
    def label_values(self) -> np.ndarray:  # type: ignore[override]
        """The first label of every image as stored in the file: (N,) float32.

        Reads the headers of all records, and so also checks that the index lacks none; of a large file only once, see
        `label_cache`. Raises RecordError.
        """
        return self._read_labels(lambda: None)

    def read_labels(self, on_chunk: Callable[[], None]) -> None:
        """Reads `label_values`, and calls on_chunk now and then; an exception in it ends the reading."""
        self.label_values = self._read_labels(on_chunk)

    def _read_labels(self, on_chunk: Callable[[], None]) -> np.ndarray:
        def read() -> np.ndarray:
            # A reader has one map of the file; another thread may be about to make it.
            return copy.copy(self.reader).labels_of_complete(self.keys, on_chunk)

        if len(self.keys) < label_cache.MIN_RECORDS:
            return read()
        return label_cache.remembered_labels(self._label_identity, len(self.keys), read)

    @property
    def labels_take_long(self) -> bool:  # type: ignore[override]
        """Whether `label_values` would read a large file, which takes minutes on a slow disk."""
        if "label_values" in vars(self) or len(self.keys) < label_cache.MIN_RECORDS:
            return False
        return not label_cache.are_remembered(self._label_identity)

    @property
    def _label_identity(self) -> str:
        """Text that is equal only for the same labels."""
        # The fingerprint is of samples of a large file; the time stamp shows changes between them.
        return f"{self.fingerprint[:40]}-{self.reader.rec.stat().st_mtime_ns:x}"

    def location(self, index: int) -> str:
        """Returns file, record and offset of an image, for messages."""
        return self.reader.location(self.keys[index])

    def warnings(self) -> list[str]:
        """Returns a line about announced images that the index lacks, if there are any."""
        if not self.n_missing:
            return []
        return [f"{self.reader.idx}: {self.n_missing} of the images that record 0 announces are missing"]

    def read_into(self, indices: Sequence[int], images: np.ndarray, labels: np.ndarray) -> None:
        """Decodes the images at these indices into (n, 112, 112, 3) uint8 RGB and (n,) int64.

        Raises UserError naming the file, record and offset of an image that cannot be read, or whose label is no class.
        """
        for i, index in enumerate(indices):
            key = self.keys[index]
            header, payload = self.reader.read_image(key)
            size = read_image_size(payload)
            image = _decode(payload) if size == (SIZE, SIZE) else None
            if image is None or image.shape != images.shape[1:]:
                raise self._bad_image_error(key, size)
            label: float = header.label if header.flag == 0 else header.label[0]  # type: ignore[index,assignment]
            if not (0 <= label < self.num_classes and float(label).is_integer()):
                raise self.label_error(index, label, self.num_classes, fix="check num_classes and the data")
            images[i], labels[i] = image, label

    def _bad_image_error(self, key: int, size: tuple[int, int] | None) -> RecordError:
        unreadable = size is None or size == (SIZE, SIZE)
        content = "not a readable image" if unreadable else f"an image of {size[0]}×{size[1]} pixels"  # type: ignore[index]
        return RecordError(f"{self.reader.location(key)}: {content}, should be a {SIZE}×{SIZE} JPEG or PNG")

    def count_classes(self) -> int:
        """Returns the number of identities from the file `property`, or the largest label + 1 where it is missing."""
        path = self.folder / "property"
        if not path.exists():
            return super().count_classes()
        with open_record_file(path) as file:
            text = file.read(40).decode(errors="replace")
        identities = text.split(",")[0].strip()
        if not identities.isdecimal() or not 1 <= int(identities) <= MAX_CLASSES:
            raise UserError(f"{path}: should read 'identities,112,112', reads {text!r}")
        return int(identities)


def _decode(payload: bytes) -> np.ndarray | None:
    """Returns the RGB pixels (H, W, 3) uint8, or None where OpenCV cannot decode the bytes."""
    try:
        return cv2.imdecode(np.frombuffer(payload, np.uint8), cv2.IMREAD_COLOR_RGB)
    except cv2.error:
        return None
