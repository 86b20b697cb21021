"""The dataset of training images: a record file in the MS1MV2 layout, decoded by index."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np

from utils.datasets.data_folder import check_training_files
from utils.datasets.image_header import read_image_size
from utils.datasets.recordio.image_keys import find_image_keys
from utils.datasets.recordio.index import RecordError, open_record_file
from utils.datasets.recordio.reader import IndexedRecordReader
from utils.datasets.transforms import SIZE
from utils.errors import UserError
from utils.filesystem import fingerprint
from utils.logs.run_log import log

MAX_CLASSES = 1 << 24  # a label is a float32, which holds every integer only up to 2^24


class FaceDataset:
    """The images of {folder}/train.rec, by index.

    In the MS1MV2 layout record 0 holds no image; its label is [end of the image keys, end of the identity keys]. In a
    plain file every record is an image.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        check_training_files(self.folder)
        self.reader = IndexedRecordReader(self.folder / "train.rec", self.folder / "train.idx")
        # keys: (N,) int64. n_missing: images that record 0 announces and the index lacks.
        self.keys, self.n_missing = find_image_keys(self.reader)
        if not len(self.keys):
            raise RecordError(f"{self.reader.rec}: no images")

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 that identifies the index and record files."""
        return fingerprint(self.reader.idx, self.reader.rec)

    @cached_property
    def label_values(self) -> np.ndarray:
        """The first label of every image as stored in the file: (N,) float32, read once and cached.

        Reads the headers of all records, and so also checks that the index lacks none. Raises RecordError.
        """
        self.reader.check_complete()
        return self.reader.labels(self.keys)

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        images, labels = np.empty((1, SIZE, SIZE, 3), np.uint8), np.empty(1, np.int64)
        self.read_into([index], images, labels)
        return images[0], int(labels[0])

    def read_into(self, indices: Sequence[int], images: np.ndarray, labels: np.ndarray) -> None:
        """Decodes the images at these indices into (n, 112, 112, 3) uint8 RGB and (n,) int64.

        Raises UserError naming the file, record and offset of an image that cannot be read.
        """
        for i, key in enumerate(self.keys[indices]):
            header, payload = self.reader.read_image(key)
            size = read_image_size(payload)
            image = _decode(payload) if size == (SIZE, SIZE) else None
            if image is None or image.shape != images.shape[1:]:
                raise self._bad_image_error(key, size)
            label = header.label if header.flag == 0 else header.label[0]  # type: ignore[index]
            if not abs(label) < MAX_CLASSES:
                raise RecordError(f"{self.reader.location(key)}: label {label:g} is not the number of a class")
            images[i], labels[i] = image, label

    def _bad_image_error(self, key: int, size: tuple[int, int] | None) -> RecordError:
        unreadable = size is None or size == (SIZE, SIZE)
        content = "not a readable image" if unreadable else f"an image of {size[0]}×{size[1]} pixels"  # type: ignore[index]
        return RecordError(f"{self.reader.location(key)}: {content}, should be a {SIZE}×{SIZE} JPEG or PNG")

    def count_classes(self) -> int:
        """Returns the number of identities from the file `property`, or the largest label + 1 where it is missing."""
        path = self.folder / "property"
        if not path.exists():
            largest = self.label_values.max()
            if not 0 <= largest < MAX_CLASSES:
                raise RecordError(f"{self.reader.rec}: the largest label is {largest:g}, not the number of a class")
            return int(largest) + 1
        with open_record_file(path) as file:
            text = file.read(40).decode(errors="replace")
        identities = text.split(",")[0].strip()
        if not identities.isdecimal() or not 1 <= int(identities) <= MAX_CLASSES:
            raise UserError(f"{path}: should read 'identities,112,112', reads {text!r}")
        return int(identities)

    def check_labels(self, num_classes: int) -> None:
        """Raises UserError unless every label is an integer from 0 to num_classes - 1."""
        labels = self.label_values
        wrong = np.flatnonzero(~((labels >= 0) & (labels < num_classes) & (labels == np.floor(labels))))
        if len(wrong):
            label = labels[wrong[0]]
            countable = label >= num_classes and labels.max() < MAX_CLASSES  # False where one of them is NaN
            fix = f"set num_classes={int(labels.max()) + 1} if the data is right" if countable else ""
            raise UserError(
                f"{self.reader.location(self.keys[wrong[0]])}: label {label:g} is not one of the {num_classes} classes "
                f"(0 to {num_classes - 1})",
                fix,
            )

    def check_identities(self, num_classes: int) -> None:
        """Raises UserError where all images have one identity, and warns about identities without images.

        Call `check_labels` first.
        """
        image_counts = np.bincount(self.label_values.astype(np.int64), minlength=num_classes)  # (num_classes,)
        empty = np.flatnonzero(image_counts == 0)
        if num_classes - len(empty) == 1:
            raise UserError(
                f"{self.reader.rec}: all {len(self)} images have the label {image_counts.argmax()}, but training needs "
                "at least two identities",
                fix="check the labels",
            )
        if len(empty):
            warning = UserError(
                f"{self.reader.rec}: {len(empty)} of {num_classes} identities have no image, the first is label "
                f"{empty[0]}: the header learns nothing for them",
                fix="unless this is intended, renumber the labels 0, 1, 2, …",
            )
            log.warning(warning)


def _decode(payload: bytes) -> np.ndarray | None:
    """Returns the RGB pixels (H, W, 3) uint8, or None where OpenCV cannot decode the bytes."""
    try:
        return cv2.imdecode(np.frombuffer(payload, np.uint8), cv2.IMREAD_COLOR_RGB)
    except cv2.error:
        return None
