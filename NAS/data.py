"""The search's data: a data set in two halves, the weights learn from one and the alphas from the other."""

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

RESIZED = 128  # pixels, of which a random SIZE × SIZE is cut


class SearchData(Protocol):
    """Images of known classes."""

    num_classes: int
    labels: np.ndarray  # (N,) int64

    @property
    def fingerprint(self) -> str:
        """By which these data are told from others."""

    def read_into(self, indices: Sequence[int], images: np.ndarray, labels: np.ndarray) -> None:
        """Writes images (n, 112, 112, 3) uint8 RGB and labels (n,)."""


class SearchFaces(FaceDataset):
    """A RecordIO folder: CASIA-WebFace, or the drawn faces."""

    def __init__(self, folder: str) -> None:
        super().__init__(folder)
        self.num_classes = self.count_classes()
        self.check_labels(self.num_classes)
        self.check_identities(self.num_classes)
        self.labels = self.label_values.astype(np.int64)


class Cifar10:
    """CIFAR-10 by torchvision, its images brought to 112×112."""

    num_classes = 10
    fingerprint = "cifar10"

    def __init__(self, folder: str) -> None:
        try:
            from torchvision.datasets import CIFAR10
        except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision that is not of this torch
            raise UserError(
                f"config search_data: cifar10 needs torchvision, of the same build as torch ({error!s:.80}); install "
                "it, or search on faces: search_data=faces"
            ) from None
        try:
            found = CIFAR10(folder, train=True, download=False)
        except RuntimeError:
            raise UserError(f"config rec: no CIFAR-10 in {folder!r}; put its cifar-10-batches-py there") from None
        self.labels = np.array(found.targets, np.int64)
        self.keys = np.arange(len(self.labels))
        # (N, 3, 32, 32) uint8, brought to size when read: at 112×112 they would take 1.9 GB
        self.images = torch.from_numpy(found.data).permute(0, 3, 1, 2)

    def read_into(self, indices: Sequence[int], images: np.ndarray, labels: np.ndarray) -> None:
        """Writes images (n, 112, 112, 3) uint8 RGB and labels (n,)."""
        chosen = self.images[torch.as_tensor(list(indices))]
        large = F.interpolate(chosen, (SIZE, SIZE), mode="bilinear", antialias=True)
        images[:] = large.permute(0, 2, 3, 1).numpy()
        labels[:] = self.labels[list(indices)]


def open_data(config: EasyDict) -> SearchData:
    """What config.search_data says, from config.rec."""
    return Cifar10(config.rec) if config.search_data == "cifar10" else SearchFaces(config.rec)


@dataclass(frozen=True)
class Halves:
    """The places of the images in the data set, ascending."""

    train: np.ndarray
    val: np.ndarray


def split(labels: np.ndarray, seed: int) -> Halves:
    """Two halves with half of every identity's images in each, drawn at random; every image is in one of them.

    Of an odd number the one more goes to the training half and to the other by turns; the image of an identity that has
    one alone goes to the training half, for its class could not be learned otherwise. (The published split drops one
    image of every odd number.)
    """
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(labels))
    order = shuffled[np.argsort(labels[shuffled], kind="stable")]  # by identity, at random within
    identities, starts, counts = np.unique(labels[order], return_index=True, return_counts=True)
    place = np.arange(len(labels)) - np.repeat(starts, counts)  # within the identity
    several = counts > 1
    odd_turn = np.where(several, np.cumsum((counts % 2 == 1) & several) % 2, 1)  # 1: one more for training
    in_train = place < np.repeat((counts + odd_turn * (counts % 2)) // 2, counts)
    singles = int(np.sum(~several))
    log.info(
        f"Data: {len(labels)} images of {len(identities)} identities; {int(in_train.sum())} for the weights, "
        f"{int(np.sum(~in_train))} for the alphas"
    )
    if singles:
        log.warning(f"{singles} identities have one image, which the weights learn from; the alphas never see them")
    if in_train.all():
        raise UserError("config rec: no identity has two images; the search needs some in both halves")
    return Halves(np.sort(order[in_train]), np.sort(order[~in_train]))


def resize_and_crop(images: Tensor, generator: torch.Generator) -> Tensor:
    """(B, 112, 112, 3) uint8 -> the same shape: each enlarged to 128×128, and 112×112 of that cut at random."""
    large = enlarge(images, in_floats=images.is_cuda)  # for GPUs torch has it in floats alone
    offsets = to_device_async(
        torch.randint(0, RESIZED - SIZE + 1, (2, len(images), 1), generator=generator), images.device
    )
    rows, columns = offsets + torch.arange(SIZE, device=images.device)  # (B, 112) each
    batch = torch.arange(len(images), device=images.device)
    return large[batch[:, None, None], rows[:, :, None], columns[:, None, :]]


def enlarge(images: Tensor, in_floats: bool) -> Tensor:
    """(B, 112, 112, 3) uint8 -> (B, 128, 128, 3) uint8. Floats and integers give the same within a grey level."""
    planes = images.permute(0, 3, 1, 2)
    planes = planes.float() if in_floats else planes
    large = F.interpolate(planes, (RESIZED, RESIZED), mode="bilinear", antialias=True)
    large = large.round_().clamp_(0, 255).byte() if in_floats else large
    return large.permute(0, 2, 3, 1)
