"""Data of the architecture search: a data set split in two halves, one for the weights and one for the alphas."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from easydict import EasyDict
from torch import Tensor

from utils.datasets.face_dataset import FaceDataset
from utils.datasets.transforms import SIZE
from utils.distributed.process_group import to_device_async
from utils.errors import UserError
from utils.logs.run_log import log

RESIZED_SIZE = 128  # pixels; random crops have SIZE × SIZE


class SearchData(Protocol):
    """Labelled images for the architecture search."""

    num_classes: int
    labels: np.ndarray  # (N,) int64

    @property
    def fingerprint(self) -> str:
        """Identifies the data set, so that a run is resumed only with the same data."""

    def read_into(self, indices: Sequence[int], images: np.ndarray, labels: np.ndarray) -> None:
        """Reads the images at `indices` into the arrays images (n, 112, 112, 3), uint8 RGB, and labels (n,)."""


class SearchFaces(FaceDataset):
    """RecordIO folder of face images, such as CASIA-WebFace or the synthetic faces. Raises UserError for bad labels."""

    def __init__(self, folder: str) -> None:
        super().__init__(folder)
        self.num_classes = self.count_classes()
        self.check_labels(self.num_classes)
        self.check_identities(self.num_classes)
        self.labels = self.label_values.astype(np.int64)


class Cifar10:
    """CIFAR-10 from torchvision, resized to 112×112. Raises UserError if torchvision or the files are missing."""

    num_classes = 10
    fingerprint = "cifar10"

    def __init__(self, folder: str) -> None:
        try:
            from torchvision.datasets import CIFAR10
        except (ImportError, RuntimeError) as error:  # RuntimeError: torchvision does not match torch
            raise UserError(
                f"config search_data: cifar10 needs torchvision that matches torch ({error!s:.80})",
                fix="install it, or use faces: search_data=faces",
            ) from None
        try:
            cifar10 = CIFAR10(folder, train=True, download=False)
        except RuntimeError:
            raise UserError(f"config rec: no CIFAR-10 in {folder!r}", fix="put its cifar-10-batches-py there") from None
        self.labels = np.array(cifar10.targets, np.int64)
        self.keys = np.arange(len(self.labels))
        # (N, 3, 32, 32) uint8, resized on reading: at 112×112 they would take 1.9 GB
        self.images = torch.from_numpy(cifar10.data).permute(0, 3, 1, 2)

    def read_into(self, indices: Sequence[int], images: np.ndarray, labels: np.ndarray) -> None:
        """Reads the images at `indices` into the arrays images (n, 112, 112, 3), uint8 RGB, and labels (n,)."""
        small = self.images[torch.as_tensor(list(indices))]
        large = F.interpolate(small, (SIZE, SIZE), mode="bilinear", antialias=True)
        images[:] = large.permute(0, 2, 3, 1).numpy()
        labels[:] = self.labels[list(indices)]


def open_search_data(config: EasyDict) -> SearchData:
    """Opens the data set in config.rec, of the kind config.search_data. Raises UserError if it cannot be read."""
    return Cifar10(config.rec) if config.search_data == "cifar10" else SearchFaces(config.rec)


@dataclass(frozen=True)
class Halves:
    """Indices of the images of both halves in the data set, ascending."""

    train: np.ndarray
    val: np.ndarray


def split_halves(labels: np.ndarray, seed: int) -> Halves:
    """Splits images at random in two halves that cover all of them and share the images of every identity equally.

    If an identity has an odd number of images, the extra one goes to the training and to the validation half in turn. A
    single image goes to the training half, because its class could not be learned otherwise. (The published split drops
    one image of each odd number.) Raises UserError if no identity has two images.
    """
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(labels))
    order = shuffled[np.argsort(labels[shuffled], kind="stable")]  # sorted by identity, random within
    identities, starts, counts = np.unique(labels[order], return_index=True, return_counts=True)
    index = np.arange(len(labels)) - np.repeat(starts, counts)  # within the identity
    several = counts > 1
    odd_turn = np.where(several, np.cumsum((counts % 2 == 1) & several) % 2, 1)  # 1: the extra image is for training
    in_train = index < np.repeat((counts + odd_turn * (counts % 2)) // 2, counts)
    singles = int(np.sum(~several))
    log.info(
        f"Data: {len(labels)} images of {len(identities)} identities; {int(in_train.sum())} for the weights, "
        f"{int(np.sum(~in_train))} for the alphas"
    )
    if singles:
        log.warning(f"{singles} identities have a single image, which is used for the weights only")
    if in_train.all():
        raise UserError("config rec: no identity has two images; the search needs images for both halves")
    return Halves(np.sort(order[in_train]), np.sort(order[~in_train]))


def resize_and_crop(images: Tensor, generator: torch.Generator) -> Tensor:
    """Resizes images (B, 112, 112, 3) uint8 to 128×128 and returns a random 112×112 crop of each."""
    large = resize_for_crop(images, in_floats=images.is_cuda)  # on GPUs torch only resizes floats
    offsets = to_device_async(
        torch.randint(0, RESIZED_SIZE - SIZE + 1, (2, len(images), 1), generator=generator), images.device
    )
    rows, columns = offsets + torch.arange(SIZE, device=images.device)  # (B, 112) each
    batch = torch.arange(len(images), device=images.device)
    return large[batch[:, None, None], rows[:, :, None], columns[:, None, :]]


def resize_for_crop(images: Tensor, in_floats: bool) -> Tensor:
    """Resizes images (B, 112, 112, 3) uint8 to (B, 128, 128, 3) uint8.

    in_floats: computes in float32 instead of integers; the results differ by at most one grey level.
    """
    planes = images.permute(0, 3, 1, 2)
    planes = planes.float() if in_floats else planes
    large = F.interpolate(planes, (RESIZED_SIZE, RESIZED_SIZE), mode="bilinear", antialias=True)
    large = large.round_().clamp_(0, 255).byte() if in_floats else large
    return large.permute(0, 2, 3, 1)
