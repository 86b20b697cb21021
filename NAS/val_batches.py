"""Batches of the validation half, which train the alphas."""

from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from torch import Tensor

from config.base import Config
from utils.datasets.shared_buffers import LOOKAHEAD
from utils.datasets.shared_loader import SharedMemoryLoader
from utils.datasets.transforms import normalise
from utils.distributed.collectives import run_on_all
from utils.distributed.process_group import World, to_device_async
from utils.errors import UserError
from utils.training.learning_rate import global_batch_size


class ValBatch(NamedTuple):
    """Batch of the validation half on the device, and the position in the half after it."""

    images: Tensor  # (B, 3, 112, 112), normalised, not augmented
    labels: Tensor  # (B,)
    epoch: int
    samples_seen: int  # samples of the epoch used by all ranks


class ValBatches:
    """Endless batches of the validation half, epoch after epoch, read ahead of their use.

    Attributes:
        position: epoch and samples of it used by all ranks, after the last batch that was used. Set before the first
            batch is read, it makes the batches go on from there.
    """

    def __init__(self, loader: SharedMemoryLoader, config: Config, world: World) -> None:
        self.position = 0, 0
        self._loader = loader
        self._config = config
        self._world = world
        self._batches = self._endless()
        self._pending: deque[ValBatch] = deque()

    def read_first(self) -> None:
        """Reads the first batches, at the first call. Collective then.

        Raises UserError on rank 0, and ends the others, if any rank cannot read its batches.
        """
        if not self._pending:
            run_on_all(self._world, self._read_first)

    def next(self) -> tuple[Tensor, Tensor]:
        """Returns images (B, 3, 112, 112) and labels (B,) of the next batch."""
        batch = self._pending.popleft()
        self._read_ahead()
        self.position = batch.epoch, batch.samples_seen
        return batch.images, batch.labels

    def _read_first(self) -> None:
        """Reads the first batches. Raises the loader's error if it has failed."""
        self._read_ahead()
        if len(self._pending) < LOOKAHEAD and self._loader.pending_error:
            self._loader.raise_pending_error()

    def _read_ahead(self) -> None:
        """Reads batches until LOOKAHEAD are pending. Keeps an error for the loader to report.

        The pending batches serve the steps until all ranks know of the error. This includes the start of an epoch of
        the half, where the loader fails at once for any of its first batches.
        """
        try:
            self._pending.extend(islice(self._batches, LOOKAHEAD - len(self._pending)))
        except (UserError, RuntimeError) as error:
            self._loader.pending_error = error.with_traceback(None)

    def _endless(self) -> Iterator[ValBatch]:
        """Yields batches from the position on, epoch after epoch."""
        epoch, samples_seen = self.position
        while True:
            for batch in self._loader.iter_epoch(epoch, samples_seen):
                samples_seen += global_batch_size(self._config, self._world.size)
                images = normalise(to_device_async(batch.images, self._world.device))
                # Copied, on the CPU too: the loader reuses its memory before this batch is used.
                labels = to_device_async(batch.labels, self._world.device).clone()
                yield ValBatch(images, labels, epoch, samples_seen)
            epoch, samples_seen = epoch + 1, 0
