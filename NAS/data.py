"""Data of the architecture search: a data set split in two halves, one for the weights and one for the alphas."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from config.base import Config
from utils.datasets.alignment import SIZE
from utils.datasets.image_dataset import ImageDataset, open_dataset
from utils.distributed.process_group import to_device_async
from utils.errors import UserError
from utils.logs.logger import log

RESIZED_SIZE = 128  # pixels; random crops have SIZE × SIZE


def open_search_data(config: Config) -> tuple[ImageDataset, int]:
    """Opens and checks the training images; returns them and the number of classes. Raises UserError."""
    dataset = open_dataset(config)
    num_classes = dataset.count_classes()
    dataset.check_labels(num_classes)
    dataset.check_identities(num_classes)
    return dataset, num_classes


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
