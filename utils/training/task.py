"""Interface between the training loop and its tasks: the loop supplies batches, a task computes losses from them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from config.base import Config
from utils.datasets.image_dataset import ImageDataset
from utils.datasets.shared_loader import SharedMemoryLoader
from utils.distributed.data_parallel import unwrap_ddp
from utils.distributed.process_group import World


@dataclass(frozen=True)
class Batch:
    """Network input of one step on this rank, with labels and dataset indices."""

    images: Tensor  # (B, 3, 112, 112) float32 in [-1, 1], augmented, on the device
    labels: Tensor  # (B,) int64, on the device
    indices: Tensor  # (B,) int64, dataset indices, on the CPU
    flipped: Tensor  # (B,) bool, whether the image is flipped horizontally, on the CPU


@dataclass(frozen=True)
class TaskInputs:
    """Arguments of a task factory."""

    config: Config
    world: World
    dataset: ImageDataset
    backbone: nn.Module  # on the device, not wrapped
    header: nn.Module  # on the device, wrapped by `wrap_ddp` unless sharded
    epoch_end_steps: Sequence[int]  # global step at the end of each epoch


class Task:
    """Computes named losses from a batch; the loss named "Loss" is minimised.

    Subclasses implement `__call__`. The hooks do nothing by default.
    """

    # Suffixes of the exported file names; the global step precedes them, as in 295672backbone.pth.
    export_suffixes: tuple[str, ...] = ("header.pth", "backbone.pth")

    # Config fields that must not change when a run is resumed, besides optimizer and freeze.
    fixed_fields: tuple[str, ...] = ()

    # Loaders that the task reads itself. The run ends when one of them fails, as it does for the loop's own loader.
    loaders: tuple[SharedMemoryLoader, ...] = ()

    def __init__(self, backbone: nn.Module, header: nn.Module) -> None:
        """Both modules are trained; only the backbone's gradient is clipped."""
        self.backbone = backbone
        self.header = header

    def on_train_start(self, optimizer: torch.optim.Optimizer) -> None:
        """Called once, before the first epoch, with the optimizer of both modules."""

    def on_epoch_start(self, epoch: int) -> None:
        """Called before the first batch of each epoch."""

    def on_epoch_end(self, epoch: int, step: int) -> None:
        """Called on all ranks after the last batch of each epoch, when the weights are saved."""

    def augment(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Augments (B, 112, 112, 3) uint8 images on their device, before the horizontal flip."""
        return images

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """Returns scalar losses by name, on the device."""
        raise NotImplementedError

    def undo_step(self, nonfinite: Tensor) -> None:
        """Restores what `__call__` changed, apart from buffers, where a () bool tensor on the device is true.

        Called after each step, with whether it is non-finite and is skipped.
        """

    def exported_modules(self, step: int) -> dict[str, nn.Module]:
        """Returns the trained modules by file name, in the order in which they are written.

        The backbone comes last, so that a header file exists wherever its backbone file does.
        """
        return {f"{step}header.pth": unwrap_ddp(self.header), f"{step}backbone.pth": unwrap_ddp(self.backbone)}

    def state_dict(self) -> dict[str, Any]:
        """Returns the task's training state other than both modules and their optimizer. Called on rank 0 only."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned. Called on all ranks."""
