"""Shared memory into which loader workers decode batches for the training process.

A batch sent through the data loader's queue is copied into newly allocated shared memory, and the page faults of that
copy cost as much as decoding. Here each worker owns a fixed set of slots, and only the slot's number is sent.
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

from utils.datasets.alignment import SIZE
from utils.errors import UserError

PREFETCH = 4  # batches that each worker prepares ahead
# Batches fetched before they are used, so that an unreadable image is known in time for the run to save a checkpoint.
LOOKAHEAD = 2
# A worker starts a new batch when one of its batches is fetched. So at most PREFETCH are in progress or waiting,
# LOOKAHEAD more are fetched, one is in use by the consumer, and one is spare.
SLOTS = PREFETCH + LOOKAHEAD + 2

SlotRef = tuple[int, int, int, list[str]]  # worker, slot, number of images, error messages of skipped images


class HostBatch(NamedTuple):
    """A batch on the CPU, as the loader yields it."""

    images: Tensor  # (B, 112, 112, 3) uint8 RGB
    labels: Tensor  # (B,) int64
    indices: Tensor  # (B,) int64, positions of the images in the dataset


class ImageSource(Protocol):
    """A dataset that the loader can read from; `utils.datasets.image_dataset.ImageDataset` for training."""

    def read_into(self, indices: Sequence[int], images: np.ndarray, labels: np.ndarray) -> None:
        """Writes the images at these indices into (n, 112, 112, 3) uint8 RGB and (n,) int64. Raises UserError."""


class SharedBatchBuffers(Dataset):
    """The batch buffers of all workers. To torch's data loader it is a dataset whose batches are slot references."""

    def __init__(self, dataset: ImageSource, workers: int, batch_size: int, skip_bad: bool) -> None:
        self.dataset = dataset
        self.skip_bad = skip_bad
        shape = (max(1, workers), SLOTS, batch_size)
        self.images = torch.zeros(*shape, SIZE, SIZE, 3, dtype=torch.uint8)
        self.labels = torch.zeros(shape, dtype=torch.int64)
        self.indices = torch.zeros(shape, dtype=torch.int64)
        if workers:
            local_world_size = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # each rank has its own slots
            _check_shared_memory(local_world_size * self.images.numel())
            for buffer in (self.images, self.labels, self.indices):
                buffer.share_memory_()
        self.batch_count = 0  # batches that this worker has started

    def __getitems__(self, indices: list[int]) -> SlotRef | UserError:
        info = get_worker_info()
        worker, slot, n = info.id if info else 0, self.batch_count % SLOTS, len(indices)
        self.batch_count += 1
        batch = self.batch((worker, slot, n, []))
        batch.indices[:] = torch.tensor(indices)
        messages: list[str] = []
        try:
            self.dataset.read_into(indices, batch.images.numpy(), batch.labels.numpy())
        except UserError as error:
            messages = self._replace_bad_images(batch) if self.skip_bad else []
            if not 0 < len(messages) < n:
                return error  # raised here, it would reach the training process as a page of traceback
        return worker, slot, n, messages

    def _replace_bad_images(self, batch: HostBatch) -> list[str]:
        """Reads images one by one, overwrites unreadable ones with copies of good ones, and returns the errors."""
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
        for n, i in enumerate(bad if good else []):
            for tensor in batch:
                tensor[i] = tensor[good[n % len(good)]]
        return messages

    def batch(self, ref: SlotRef) -> HostBatch:
        """Returns the batch in a slot as a view, not a copy."""
        worker, slot, n, _ = ref
        return HostBatch(*(buffer[worker, slot, :n] for buffer in (self.images, self.labels, self.indices)))


def _check_shared_memory(size: int) -> None:
    """Raises UserError where /dev/shm, small in many containers, lacks `size` bytes. Later it would be a bus error."""
    shm = Path("/dev/shm")
    if shm.is_dir() and shutil.disk_usage(shm).free < size:
        raise UserError(
            f"config workers: their {size >> 20} MiB do not fit in the shared memory left in {shm}",
            fix="lower workers or batch_size, or give the container more (docker run --shm-size)",
        )
