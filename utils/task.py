"""What the training loop and the ways of training agree on: the loop makes batches, a task makes losses of them."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn


@dataclass(frozen=True)
class Batch:
    """Images as the network takes them, and where they come from."""

    images: Tensor  # (B, 3, 112, 112) float32 in [-1, 1], some mirrored, on the device
    labels: Tensor  # (B,) int64, on the device
    indices: Tensor  # (B,) int64, places in the data set, on the CPU
    mirrored: Tensor  # (B,) bool, whether the image is its mirror image, on the CPU


class Task(Protocol):
    """Turns a batch into named losses; the one named "Loss" is minimised. The networks' state is what is saved."""

    backbone: nn.Module
    header: nn.Module

    def start_epoch(self, epoch: int) -> None:
        """Called before the first batch of each epoch."""

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """Scalar losses, on the device."""
