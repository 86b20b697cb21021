"""Batch samplers: the order in which a run sees its images."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from config.base import Config
from utils.errors import UserError


class BatchSampler(Sampler[list[int]]):
    """Yields the image indices of one epoch batch by batch, at most batch_size in each."""

    batch_size: int
    n_images: int
    epoch = 0
    samples_seen = 0  # images of the epoch that all ranks together have already consumed

    def num_batches(self, samples_seen: int = 0) -> int:
        """Returns the number of batches left in an epoch after `samples_seen` of its images."""
        raise NotImplementedError

    def __len__(self) -> int:
        return self.num_batches()


class ListSampler(BatchSampler):
    """Yields the given indices in their order, each once. The last batch may be smaller."""

    def __init__(self, indices: np.ndarray, batch_size: int) -> None:
        self.indices = indices
        self.n_images = len(indices)
        self.batch_size = batch_size

    def num_batches(self, samples_seen: int = 0) -> int:
        return -(-(self.n_images - samples_seen) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        for start in range(self.samples_seen, self.n_images, self.batch_size):
            yield self.indices[start : start + self.batch_size].tolist()


class EpochSampler(BatchSampler):
    """Shuffles all images again each epoch, in an order that does not depend on the number of ranks.

    With P ranks and batch size B, step t of an epoch takes images t·B·P to (t + 1)·B·P of the order, each rank taking
    B of them. The images left over at the end, fewer than B·P, are dropped as published. An epoch resumed after
    `samples_seen` images splits the rest of its order over the current number of ranks, which may differ from before.
    """

    def __init__(
        self, images: int | np.ndarray, batch_size: int, rank: int = 0, world_size: int = 1, seed: int = 0
    ) -> None:
        """images: the number of images, or the indices to sample from."""
        self.images = images
        self.n_images = images if isinstance(images, int) else len(images)
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.seed = seed
        if not len(self):
            raise UserError(
                f"config batch_size: {batch_size} images on {world_size} processes are more than the data set's "
                f"{self.n_images}",
                fix="lower batch_size",
            )

    def num_batches(self, samples_seen: int = 0) -> int:
        return (self.n_images - samples_seen) // (self.batch_size * self.world_size)

    def __iter__(self) -> Iterator[list[int]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.images)[self.samples_seen :]
        for step in range(self.num_batches(self.samples_seen)):
            start = (step * self.world_size + self.rank) * self.batch_size
            yield order[start : start + self.batch_size].tolist()


def check_batch_size(config: Config) -> None:
    """Raises UserError for a batch size of 1, with which batch norm cannot learn."""
    if config.batch_size == 1:
        raise UserError(
            "config batch_size: 1 image is too few for batch norm to learn from", fix="type batch_size=2 or more"
        )
