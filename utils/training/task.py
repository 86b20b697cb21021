"""What the training loop and the ways of training agree on: the loop makes batches, a task makes losses of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from easydict import EasyDict
from torch import Tensor, nn

from utils.datasets.face_dataset import FaceDataset
from utils.datasets.shared_loader import Loader
from utils.distributed.process_group import World, unwrap_ddp


@dataclass(frozen=True)
class Batch:
    """Images as the network takes them, and where they come from."""

    images: Tensor  # (B, 3, 112, 112) float32 in [-1, 1], some mirrored, on the device
    labels: Tensor  # (B,) int64, on the device
    indices: Tensor  # (B,) int64, places in the data set, on the CPU
    flipped: Tensor  # (B,) bool, whether the image is its mirror image, on the CPU


@dataclass(frozen=True)
class TaskInputs:
    """What the task of a run is made from."""

    config: EasyDict
    world: World
    dataset: FaceDataset
    backbone: nn.Module  # on the device, not yet wrapped for several processes
    header: nn.Module  # on the device, wrapped
    epoch_end_steps: Sequence[int]  # the global step at the end of each epoch


class Task:
    """Turns a batch into named losses; the one named "Loss" is minimised. Whatever else is called may do nothing."""

    suffixes: tuple[str, ...] = ("header.pth", "backbone.pth")  # of the published files' names, behind the step

    loaders: tuple[Loader, ...] = ()  # that the task reads itself: a failure of one ends the run as the loop's own does

    def __init__(self, backbone: nn.Module, header: nn.Module) -> None:
        """Both are trained; the backbone's gradient is clipped."""
        self.backbone = backbone
        self.header = header

    def on_train_start(self, optimizer: torch.optim.Optimizer) -> None:
        """Called once, before the first epoch, with the optimizer of both networks."""

    def on_epoch_start(self, epoch: int) -> None:
        """Called before the first batch of each epoch."""

    def on_epoch_end(self, epoch: int, step: int) -> None:
        """Called after the last batch of each epoch, on every process, when the networks are saved."""

    def augment(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """What is done to (B, 112, 112, 3) uint8 images, on their device, beside mirroring them."""
        return images

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """Scalar losses, on the device."""
        raise NotImplementedError

    def exported_modules(self, step: int) -> dict[str, nn.Module]:
        """What has been learned, by the names of its files: the backbone last, so that where it stands the header
        stands too."""
        return {f"{step}header.pth": unwrap_ddp(self.header), f"{step}backbone.pth": unwrap_ddp(self.backbone)}

    def state_dict(self) -> dict[str, Any]:
        """What changes while training, beside both networks and their optimizer; called on the main process."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a `state`."""
