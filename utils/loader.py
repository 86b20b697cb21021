"""Batches decoded ahead by worker processes, straight into memory that they share with the training process.

A batch that travels through the data loader's queue is copied into fresh shared memory, and the page faults of that
cost as much as decoding it. Here each worker owns a few slots for good and only the slot's number travels.
"""

import ctypes
import multiprocessing
import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeVar

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from utils.errors import PassingError, UserError
from utils.images import SIZE
from utils.run_log import log
from utils.signals import ENDING, SAVING

if TYPE_CHECKING:
    from utils.dataset import BatchSampler

PREFETCH = 4  # batches that a worker is ahead
# A worker is given a new batch when one of its own is taken: at most PREFETCH are under way or waiting, one more is in
# use by the consumer, and one is for good measure.
SLOTS = PREFETCH + 2

Ticket = tuple[int, int, int, list[str]]  # worker, slot, images in it, what was wrong with images left out


class Decoded(NamedTuple):
    """A batch as it leaves the loader, on the CPU."""

    images: Tensor  # (B, 112, 112, 3) uint8 RGB
    labels: Tensor  # (B,) int64
    indices: Tensor  # (B,) int64, the images' places in the data set


class ImageSource(Protocol):
    """Where the loader's images come from: `utils.dataset.FaceDataset` for training."""

    def read_into(self, indices: Sequence[int], images: np.ndarray, labels: np.ndarray) -> None:
        """Writes the images of these indices into (n, 112, 112, 3) uint8 RGB, and (n,) int64. Raises UserError."""


S = TypeVar("S", bound=ImageSource)


class Loader(Generic[S]):
    """The batches of one epoch after another, in the sampler's order."""

    def __init__(
        self, dataset: S, sampler: "BatchSampler", workers: int = 0, pin: bool = False, skip_bad: bool = False,
        timeout: int = 0,
    ) -> None:  # fmt: skip
        """workers: processes; 0 decodes in this one. pin: for a GPU, hand out pinned copies. skip_bad: an image that
        cannot be read is told and left out, another of its batch stands twice; else it is an error. timeout: seconds
        to wait for workers; 0: for ever."""
        self.dataset = dataset
        self.sampler = sampler
        self.pin = pin
        self.timeout = timeout if workers else 0
        # Before a worker is forked: one that inherits OpenCV's threads, dead in it, hangs in its next call or its end.
        cv2.setNumThreads(1)
        self._slots = _Slots(dataset, workers, sampler.batch_size, skip_bad)
        self.skipped = 0  # images left out so far
        self._loader = DataLoader(
            self._slots,
            batch_sampler=sampler,
            num_workers=workers,
            collate_fn=_as_is,
            persistent_workers=workers > 0,
            worker_init_fn=_leave_signals,
            prefetch_factor=PREFETCH if workers else None,
            timeout=self.timeout,
        )

    def __len__(self) -> int:
        return len(self.sampler)

    def epoch(self, epoch: int, seen: int = 0) -> Iterator[Decoded]:
        """The epoch's batches, after the first `seen` images of it. Unpinned ones are overwritten once the batch after
        next is asked for: use or copy them.

        Raises UserError at a record that cannot be read.
        """
        self.sampler.epoch, self.sampler.seen = epoch, seen
        for ticket in self._tickets():
            if isinstance(ticket, UserError):
                try:
                    raise ticket
                finally:
                    del ticket  # its traceback holds this frame: a cycle, in which the workers end only after a wait
            for message in ticket[3]:
                self.skipped += 1
                log.error(f"{message}: left out ({self.skipped} so far)")  # error: other processes say no less
            batch = self._slots.batch(ticket)
            yield Decoded(batch.images.pin_memory(), batch.labels.pin_memory(), batch.indices) if self.pin else batch

    def _tickets(self) -> Iterator[Any]:
        try:
            yield from self._loader
        except RuntimeError as error:
            if "DataLoader timed out" not in str(error):
                raise
            for worker in multiprocessing.active_children():
                worker.kill()  # what hangs does not end when asked to, and this process would wait for its end
            raise PassingError(
                f"no images have come for {self.timeout} s (config timeout): a loader worker hangs, or waits for its "
                "disk"
            ) from None


class _Slots(Dataset):
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

    def __getitems__(self, indices: list[int]) -> Ticket | UserError:
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

    def _read_good_ones(self, batch: Decoded) -> list[str]:
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

    def batch(self, ticket: Ticket) -> Decoded:
        worker, slot, n, _ = ticket
        return Decoded(*(memory[worker, slot, :n] for memory in (self.images, self.labels, self.indices)))


def _check_shared_memory(size: int) -> None:
    """A container's small /dev/shm would end the run with a bus error."""
    shm = Path("/dev/shm")
    if shm.is_dir() and shutil.disk_usage(shm).free < size:
        raise UserError(
            f"config workers: their {size >> 20} MiB do not fit in the shared memory left in {shm}; "
            "lower workers or batch_size, or give the container more (docker run --shm-size)"
        )


def _leave_signals(worker: int) -> None:
    """Ctrl-C at a terminal and a scheduler's signals reach workers too; but it is the training process that ends, after
    its step and a checkpoint, and them: a worker heeds its SIGTERM alone."""
    for number in (*ENDING, *SAVING):
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        # It inherits the connections to other processes, which would see them open for as long as it outlives its own.
        pr_set_pdeathsig = 1  # linux/prctl.h
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if hasattr(signal, "sigwaitinfo"):  # which tells who sent it; not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_heed, args=(os.getppid(),), daemon=True).start()


def _heed(process: int) -> None:
    """Ends this process at a SIGTERM of the other one."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != process:
        pass
    os._exit(0)


def _as_is(ticket: Any) -> Any:
    return ticket
