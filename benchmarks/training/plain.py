"""A plain training loop to compare with: what the published code does, written anew.

Images pass one by one through a pipeline of floats, the network is as torch builds it (contiguous memory, nn.PReLU,
eager, float32), a teacher is evaluated at every step, and the host reads the loss after every step.
"""

import time
from collections.abc import Iterable, Iterator
from itertools import count
from typing import TypeVar

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from backbones.ops import FactorizedReduce, StdConv
from backbones.prelu import PReLU
from config.base import Config
from utils.datasets.image_dataset import ImageDataset
from utils.distributed.process_group import World
from utils.training.task import Batch, Task

T = TypeVar("T")


class PerImageFloat(Dataset):
    """Decodes, flips, scales to float and permutes each image to (C, H, W) on its own, as usual pipelines do."""

    def __init__(self, dataset: ImageDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image, label = self.dataset[index]
        if torch.rand(()) < 0.5:
            image = image[:, ::-1]
        pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).contiguous()
        return pixels.float().div(255).sub(0.5).div(0.5), int(label)


def make_plain(network: nn.Module) -> None:
    """Gives a network the operations and the memory layout that torch has by default."""
    for module in network.modules():
        if isinstance(module, PReLU):
            module.__class__ = nn.PReLU  # type: ignore[assignment]
        elif isinstance(module, StdConv | FactorizedReduce):
            module.folds = False
    network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]


def plain_steps(task: Task, dataset: ImageDataset, config: Config, world: World) -> Iterator[float]:
    """Trains for ever; yields after each step the seconds for which it waited for its batch."""
    loader = DataLoader(
        PerImageFloat(dataset), config.batch_size, shuffle=True, num_workers=config.workers,
        drop_last=True, persistent_workers=config.workers > 0, pin_memory=world.device.type == "cuda",
    )  # fmt: skip
    optimizers = [
        torch.optim.SGD(module.parameters(), config.lr, config.momentum, weight_decay=config.weight_decay)
        for module in (task.backbone, task.header)
    ]
    task.backbone.train()
    for epoch in count():
        task.on_epoch_start(epoch)
        for (images, labels), waited in with_waits(loader):
            on_device = images.to(world.device), labels.to(world.device)
            losses = task(Batch(*on_device, labels, torch.zeros(len(labels), dtype=torch.bool)))
            losses["Loss"].backward()
            nn.utils.clip_grad_norm_(task.backbone.parameters(), config.clip_norm)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            losses["Loss"].item()
            yield waited


def with_waits(batches: Iterable[T]) -> Iterator[tuple[T, float]]:
    """Yields each batch with the seconds that it took to arrive."""
    iterator = iter(batches)
    while True:
        start = time.perf_counter()
        try:
            batch = next(iterator)
        except StopIteration:
            return
        yield batch, time.perf_counter() - start
