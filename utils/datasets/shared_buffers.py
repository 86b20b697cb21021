"""The memory that loader workers decode batches into and share with the training process.

A batch that travels through the data loader's queue is copied into fresh shared memory, and the page faults of that
cost as much as decoding it. Here each worker owns a few slots for good and only the slot's number travels.
"""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from utils.datasets.transforms import SIZE
from utils.errors import UserError

PREFETCH = 4  # batches that a worker is ahead
LOOKAHEAD = (
    2  # batches that are taken before they are used: what is wrong with one is known in time to end in good order
)
# A worker is given a new batch when one of its own is taken: at most PREFETCH are under way or waiting, AHEAD more are
# taken, one is in use by the consumer, and one is for good measure.
SLOTS = PREFETCH + LOOKAHEAD + 2

SlotRef = tuple[int, int, int, list[str]]  # worker, slot, images in it, what was wrong with images left out


class HostBatch(NamedTuple):
    """A batch as it leaves the loader, on the CPU."""

    images: Tensor  # (B, 112, 112, 3) uint8 RGB
    labels: Tensor  # (B,) int64
    indices: Tensor  # (B,) int64, the images' places in the data set


class ImageSource(Protocol):
    """Where the loader's images come from: `utils.datasets.face_dataset.FaceDataset` for training."""

    def read_into(self, indices: Sequence[int], images: np.ndarray, labels: np.ndarray) -> None:
        """Writes the images of these indices into (n, 112, 112, 3) uint8 RGB, and (n,) int64. Raises UserError."""


class SharedBatchBuffers(Dataset):
    """The memory that batches are decoded into; a data set of tickets, as the data loader sees it."""

    def __init__(self, dataset: ImageSource, workers: int, batch_size: int, skip_bad: bool) -> None:
        self.dataset = dataset
        self.skip_bad = skip_bad
        shape = (max(1, workers), SLOTS, batch_size)
        self.images = torch.zeros(*shape, SIZE, SIZE, 3, dtype=torch.uint8)
        self.labels = torch.zeros(shape, dtype=torch.int64)
        self.indices = torch.zeros(shape, dtype=torch.int64)
        if workers:
            on_this_machine = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # training processes, each with its own slots
            _check_shared_memory(on_this_machine * self.images.numel())
            for memory in (self.images, self.labels, self.indices):
                memory.share_memory_()
        self.turn = 0  # counts the batches of this worker

    def __getitems__(self, indices: list[int]) -> SlotRef | UserError:
        info = get_worker_info()
        worker, slot, n = info.id if info else 0, self.turn % SLOTS, len(indices)
        self.turn += 1
        batch = self.batch((worker, slot, n, []))
        batch.indices[:] = torch.tensor(indices)
        messages: list[str] = []
        try:
            self.dataset.read_into(indices, batch.images.numpy(), batch.labels.numpy())
        except UserError as error:
            messages = self._read_good_ones(batch) if self.skip_bad else []
            if not 0 < len(messages) < n:
                return error  # raised here, it would reach the training process as a page of traceback
        return worker, slot, n, messages

    def _read_good_ones(self, batch: HostBatch) -> list[str]:
        """Reads images one by one, puts good ones in the place of bad ones; returns what is wrong with these."""
        messages: list[str] = []
        good: list[int] = []
        bad: list[int] = []
        for i, index in enumerate(batch.indices.tolist()):
            try:
                self.dataset.read_into([index], batch.images[i : i + 1].numpy(), batch.labels[i : i + 1].numpy())
                good.append(i)
            except UserError as error:
                bad.append(i)
                messages.append(str(error))
        for place, i in enumerate(bad if good else []):
            for memory in batch:
                memory[i] = memory[good[place % len(good)]]
        return messages

    def batch(self, ticket: SlotRef) -> HostBatch:
        """Returns the batch in the ticket's slot, which is not a copy."""
        worker, slot, n, _ = ticket
        return HostBatch(*(memory[worker, slot, :n] for memory in (self.images, self.labels, self.indices)))


def _check_shared_memory(size: int) -> None:
    """A container's small /dev/shm would end the run with a bus error."""
    shm = Path("/dev/shm")
    if shm.is_dir() and shutil.disk_usage(shm).free < size:
        raise UserError(
            f"config workers: their {size >> 20} MiB do not fit in the shared memory left in {shm}; "
            "lower workers or batch_size, or give the container more (docker run --shm-size)"
        )
