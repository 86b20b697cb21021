"""Labelled images that a run trains on: the interface of every data source (DATA_SOURCES in utils/registry.py)."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from config.base import Config
from utils.datasets.alignment import SIZE
from utils.errors import UserError
from utils.logs.logger import log
from utils.registry import DATA_SOURCES, load_entry

MAX_CLASSES = 1 << 24  # a label is a float32, which holds every integer only up to 2^24


class ImageDataset:
    """Training images, by index. A data source is a subclass, made from a folder.

    Subclasses set the attributes and implement `read_into`; the other methods have defaults that serve most of them.
    """

    name: str  # file or folder of the images, for messages
    keys: np.ndarray  # (N,) int64, the number of each image in messages
    label_values: np.ndarray  # (N,) the labels as stored, before any check
    fingerprint: str  # equal only for the same images, so that a resumed run and a cache notice other data
    n_bytes: int = 0  # size of the files, which must be equal on all machines
    # Of a run: labels are below it. A data source whose labels take long to read refuses others in `read_into`.
    num_classes: int = MAX_CLASSES
    labels_take_long: bool = False  # whether `label_values` is not known yet and takes longer to read than people wait

    def __init__(self, folder: str | Path) -> None:
        """Opens the images in a folder. Raises UserError if they cannot be read."""
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        images, labels = np.empty((1, SIZE, SIZE, 3), np.uint8), np.empty(1, np.int64)
        self.read_into([index], images, labels)
        return images[0], int(labels[0])

    def read_into(self, indices: Sequence[int], images: np.ndarray, labels: np.ndarray) -> None:
        """Writes the images at these indices into (n, 112, 112, 3) uint8 RGB, and their labels into (n,) int64.

        Raises UserError naming an image that cannot be read.
        """
        raise NotImplementedError

    def read_labels(self, on_chunk: Callable[[], None]) -> None:
        """Reads `label_values` if they take long, and calls on_chunk now and then; an exception in it ends the reading.

        May be called in a thread while another one calls `read_into`. Raises UserError.
        """

    def location(self, index: int) -> str:
        """Returns where an image is, for messages."""
        return f"{self.name}: image {self.keys[index]}"

    def warnings(self) -> list[str]:
        """Returns what people should know of the files, to be logged."""
        return []

    def count_classes(self) -> int:
        """Returns the number of identities, by default the largest label + 1. Raises UserError if it is none."""
        largest = self.label_values.max()
        if not 0 <= largest < MAX_CLASSES:
            raise UserError(f"{self.name}: the largest label is {largest:g}, not the number of a class")
        return int(largest) + 1

    def check_labels(self, num_classes: int) -> None:
        """Raises UserError unless every label is an integer from 0 to num_classes - 1."""
        labels = self.label_values
        wrong = np.flatnonzero(~((labels >= 0) & (labels < num_classes) & (labels == np.floor(labels))))
        if len(wrong):
            label = labels[wrong[0]]
            countable = label >= num_classes and labels.max() < MAX_CLASSES  # False where one of them is NaN
            fix = f"set num_classes={int(labels.max()) + 1} if the data is right" if countable else ""
            raise self.label_error(int(wrong[0]), label, num_classes, fix)

    def label_error(self, index: int, label: float, num_classes: int, fix: str) -> UserError:
        """Returns the error for an image whose label is none of the classes."""
        classes = f"one of the {num_classes} classes (0 to {num_classes - 1})"
        return UserError(f"{self.location(index)}: label {label:g} is not {classes}", fix)

    def check_identities(self, num_classes: int) -> None:
        """Raises UserError where all images have one identity, and warns about identities without images.

        Call `check_labels` first.
        """
        image_counts = np.bincount(self.label_values.astype(np.int64), minlength=num_classes)  # (num_classes,)
        empty = np.flatnonzero(image_counts == 0)
        if num_classes - len(empty) == 1:
            raise UserError(
                f"{self.name}: all {len(self)} images have the label {image_counts.argmax()}, but training needs at "
                "least two identities",
                fix="check the labels",
            )
        if len(empty):
            warning = UserError(
                f"{self.name}: {len(empty)} of {num_classes} identities have no image, the first is label {empty[0]}: "
                "the header learns nothing for them",
                fix="unless this is intended, renumber the labels 0, 1, 2, …",
            )
            log.warning(warning)


def open_dataset(config: Config) -> ImageDataset:
    """Opens the data in config.rec, of the kind config.data_source. Raises UserError if they cannot be read."""
    return load_entry(DATA_SOURCES[config.data_source])(config.rec)
