"""Training images: a record file in the MS1MV2 layout, and the order in which a run sees it."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
from easydict import EasyDict
from torch.utils.data import Sampler

from utils.data_folder import check_training_files
from utils.distributed import World, gather_rows, on_main, together
from utils.errors import UserError
from utils.files import fingerprint
from utils.image_keys import find_image_keys
from utils.image_size import image_size
from utils.images import SIZE
from utils.loader import Loader, S
from utils.record_index import RecordError, open_record_file
from utils.record_reader import IndexedRecordReader
from utils.run_log import log

MOST_CLASSES = 1 << 24  # a label is a float32, which holds no more whole numbers in a row


class FaceDataset:
    """The images of {folder}/train.rec, by index.

    Record 0 of the MS1MV2 layout is a header (no image; its label is [end of the image keys, end of the identity
    keys]); in a plain file every record is an image.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        check_training_files(self.folder)
        self.reader = IndexedRecordReader(self.folder / "train.rec", self.folder / "train.idx")
        self.keys, self.n_missing = find_image_keys(self.reader)  # (N,); images announced that are not there
        if not len(self.keys):
            raise RecordError(f"{self.reader.rec}: no images")

    @cached_property
    def fingerprint(self) -> str:
        """By which these data are told from others."""
        return fingerprint(self.reader.idx, self.reader.rec)

    @cached_property
    def label_values(self) -> np.ndarray:
        """The first label of every image as it stands in the file: (N,) float32. Reads all records' heads, by which it
        is seen, too, that the index lacks none. Raises RecordError."""
        self.reader.check_complete()
        return self.reader.labels(self.keys)

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        images, labels = np.empty((1, SIZE, SIZE, 3), np.uint8), np.empty(1, np.int64)
        self.read_into([index], images, labels)
        return images[0], int(labels[0])

    def read_into(self, indices: Sequence[int], images: np.ndarray, labels: np.ndarray) -> None:
        """Decodes the images of these indices into (n, 112, 112, 3) uint8 RGB and (n,) int64.

        Raises UserError naming file, record and offset of what cannot be read.
        """
        for i, key in enumerate(self.keys[indices]):
            header, payload = self.reader.read_image(key)
            size = image_size(payload)
            image = _decode(payload) if size == (SIZE, SIZE) else None
            if image is None or image.shape != images.shape[1:]:
                raise self._bad_image(key, size)
            label = header.label if header.flag == 0 else header.label[0]  # type: ignore[index]
            if not abs(label) < MOST_CLASSES:
                raise RecordError(f"{self.reader.where(key)}: label {label:g} is not the number of a class")
            images[i], labels[i] = image, label

    def _bad_image(self, key: int, size: tuple[int, int] | None) -> RecordError:
        sound = size is None or size == (SIZE, SIZE)
        found = "not a readable image" if sound else f"an image of {size[0]}×{size[1]} pixels"  # type: ignore[index]
        return RecordError(f"{self.reader.where(key)}: {found}, should be a {SIZE}×{SIZE} JPEG or PNG")

    def count_classes(self) -> int:
        """Identities, as the file `property` says, or by the largest label where it is missing."""
        path = self.folder / "property"
        if not path.exists():
            largest = self.label_values.max()
            if not 0 <= largest < MOST_CLASSES:
                raise RecordError(f"{self.reader.rec}: the largest label is {largest:g}, not the number of a class")
            return int(largest) + 1
        with open_record_file(path) as file:
            text = file.read(40).decode(errors="replace")
        identities = text.split(",")[0].strip()
        if not identities.isdecimal() or not 1 <= int(identities) <= MOST_CLASSES:
            raise UserError(f"{path}: should read 'identities,112,112', reads {text!r}")
        return int(identities)

    def check_labels(self, num_classes: int) -> None:
        """Raises UserError unless every label is a whole number from 0 to num_classes - 1."""
        labels = self.label_values
        wrong = np.flatnonzero(~((labels >= 0) & (labels < num_classes) & (labels == np.floor(labels))))
        if len(wrong):
            label = labels[wrong[0]]
            countable = label >= num_classes and labels.max() < MOST_CLASSES  # not so with a nan among them
            mend = f"; set num_classes={int(labels.max()) + 1} if the data is right" if countable else ""
            raise UserError(
                f"{self.reader.where(self.keys[wrong[0]])}: label {label:g} is not one of the {num_classes} classes "
                f"(0 to {num_classes - 1}){mend}"
            )

    def check_identities(self, num_classes: int) -> None:
        """Raises UserError where all images are of one identity, and warns of identities without an image.

        The labels have been checked by `check_labels`."""
        images = np.bincount(self.label_values.astype(np.int64), minlength=num_classes)  # of each identity
        empty = np.flatnonzero(images == 0)
        if num_classes - len(empty) == 1:
            raise UserError(
                f"{self.reader.rec}: all {len(self)} images have the label {images.argmax()}, a network learns to tell "
                "two identities or more apart; check the labels"
            )
        if len(empty):
            log.warning(
                f"{self.reader.rec}: {len(empty)} of {num_classes} identities have no image, the first is label "
                f"{empty[0]}: the header learns nothing for them; unless that is meant, number the labels 0, 1, 2, …"
            )


def _decode(payload: bytes) -> np.ndarray | None:
    """RGB pixels, or None where OpenCV makes none of the bytes."""
    try:
        return cv2.imdecode(np.frombuffer(payload, np.uint8), cv2.IMREAD_COLOR_RGB)
    except cv2.error:
        return None


class BatchSampler(Sampler[list[int]]):
    """The indices of one batch after another of an epoch, no more than batch_size in each."""

    batch_size: int
    n_images: int
    epoch = 0
    seen = 0  # images of the epoch that all processes together have had already

    def steps(self, seen: int = 0) -> int:
        """Batches that an epoch has left after so many images."""
        raise NotImplementedError

    def __len__(self) -> int:
        return self.steps()


class ListSampler(BatchSampler):
    """Given indices in their order, each once."""

    def __init__(self, indices: np.ndarray, batch_size: int) -> None:
        self.indices = indices
        self.n_images = len(indices)
        self.batch_size = batch_size

    def steps(self, seen: int = 0) -> int:
        return -(-(self.n_images - seen) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        for start in range(self.seen, self.n_images, self.batch_size):
            yield self.indices[start : start + self.batch_size].tolist()


class EpochSampler(BatchSampler):
    """The batches of one process: every epoch a new order of all images, the same for any number of processes.

    Step t of an epoch takes the order's images t·B·P to (t + 1)·B·P for P processes of batch B, each process its
    own B of them; images left over at the end, fewer than B·P, are dropped as published. An epoch that goes on after
    `seen` images deals the rest of its order, to whatever number of processes there is then.
    """

    def __init__(
        self, images: int | np.ndarray, batch_size: int, rank: int = 0, world_size: int = 1, seed: int = 0
    ) -> None:
        """images: how many there are, or the indices of those that are dealt."""
        self.images = images
        self.n_images = images if isinstance(images, int) else len(images)
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.seed = seed
        if not len(self):
            raise UserError(
                f"config batch_size: {batch_size} images on {world_size} processes are more than the data set's "
                f"{self.n_images}; lower batch_size"
            )

    def steps(self, seen: int = 0) -> int:
        return (self.n_images - seen) // (self.batch_size * self.world_size)

    def __iter__(self) -> Iterator[list[int]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.images)[self.seen :]
        for step in range(self.steps(self.seen)):
            start = (step * self.world_size + self.rank) * self.batch_size
            yield order[start : start + self.batch_size].tolist()


def check_batch_size(config: EasyDict) -> None:
    """Raises UserError for batches that a network cannot learn from."""
    if config.batch_size == 1:
        raise UserError("config batch_size: 1 image is too few for batch norm to learn from; type batch_size=2 or more")


def load_training_data(config: EasyDict, world: World) -> tuple[Loader, int]:
    """The loader of this process, and the number of classes. Raises UserError where config and files disagree."""
    num_classes = on_main(world, lambda: _checked_classes(config))
    dataset = together(world, lambda: FaceDataset(config.rec))
    _check_copies(dataset, world)
    sampler = EpochSampler(len(dataset), config.batch_size, world.rank, world.size, config.seed)
    return training_loader(dataset, sampler, config, world), num_classes


def training_loader(dataset: S, sampler: BatchSampler, config: EasyDict, world: World) -> Loader[S]:
    """The loader of images that are learned from, as the config says."""
    pin, skip_bad = world.device.type == "cuda", config.on_bad_image == "skip"
    return Loader(dataset, sampler, config.workers, pin, skip_bad, config.timeout)


def _check_copies(dataset: FaceDataset, world: World) -> None:
    """Raises UserError unless all processes, perhaps on several machines, have as many images in as many bytes."""
    mine = np.array([[len(dataset), dataset.reader.rec.stat().st_size]])
    if len(found := np.unique(gather_rows(mine, world), axis=0)) > 1:
        sizes = " and ".join(f"{images} images in {size:,} bytes" for images, size in found)
        raise UserError(f"config rec: the copies of {dataset.reader.rec} are not the same: {sizes}; copy one to all")


def _checked_classes(config: EasyDict) -> int:
    """config.num_classes, or the files' count where that is 0, once every label has been found to fit."""
    dataset = FaceDataset(config.rec)
    in_files = dataset.count_classes()
    num_classes = config.num_classes or in_files
    dataset.check_labels(num_classes)
    in_files = max(in_files, int(dataset.label_values.max()) + 1)
    if num_classes > in_files:
        raise UserError(
            f"config num_classes: {num_classes}, but {config.rec} holds {in_files} identities; type num_classes=0 to "
            f"take the files' count, or num_classes={in_files}"
        )
    log.info(f"Data: {len(dataset)} images of {in_files} identities in {config.rec}")
    if dataset.n_missing:
        log.warning(f"{dataset.reader.idx}: {dataset.n_missing} of the images that record 0 announces are not there")
    dataset.check_identities(num_classes)
    if config.num_image not in (0, len(dataset)):
        log.warning(f"config num_image: {config.num_image}, but the files hold {len(dataset)}: the files count")
    return num_classes
