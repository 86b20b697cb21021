"""CIFAR-10 as training images, on which the paper's ablation searches for cells."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from utils.datasets.alignment import SIZE
from utils.datasets.image_dataset import ImageDataset
from utils.errors import UserError


class Cifar10(ImageDataset):
    """The 50,000 training images of CIFAR-10, from torchvision, resized to 112×112."""

    fingerprint = "cifar10"

    def __init__(self, folder: str | Path) -> None:
        """Opens the folder that torchvision reads. Raises UserError if torchvision or the files are missing."""
        try:
            from torchvision.datasets import CIFAR10
        except (ImportError, RuntimeError) as error:  # RuntimeError: torchvision does not match torch
            raise UserError(
                f"config data_source: cifar10 needs torchvision that matches torch ({error!s:.80})",
                fix="install it, or use faces: data_source=recordio",
            ) from None
        try:
            cifar10 = CIFAR10(folder, train=True, download=False)
        except RuntimeError:
            raise UserError(
                f"config rec: no CIFAR-10 in {str(folder)!r}", fix="put its cifar-10-batches-py there"
            ) from None
        self.name = str(folder)
        self.label_values = np.array(cifar10.targets, np.int64)
        self.keys = np.arange(len(self.label_values))
        # (N, 3, 32, 32) uint8, resized on reading: at 112×112 they would take 1.9 GB
        self.images = torch.from_numpy(cifar10.data).permute(0, 3, 1, 2)

    def count_classes(self) -> int:
        """Returns 10."""
        return 10

    def read_into(self, indices: Sequence[int], images: np.ndarray, labels: np.ndarray) -> None:
        """Writes the images at these indices into (n, 112, 112, 3) uint8 RGB, and their labels into (n,) int64."""
        small = self.images[torch.as_tensor(list(indices))]
        large = F.interpolate(small, (SIZE, SIZE), mode="bilinear", antialias=True)
        images[:] = large.permute(0, 2, 3, 1).numpy()
        labels[:] = self.label_values[list(indices)]
