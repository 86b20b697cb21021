"""The global step at which each epoch of a run ends, by arithmetic: a run may have any number of epochs."""

from collections.abc import Sequence
from typing import overload

from easydict import EasyDict

from utils.dataset import BatchSampler
from utils.run_checkpoint import BEGINNING, Position


class EpochEnds(Sequence[int]):
    """The global step at the end of each epoch: of those that are done, then every `steps` from `first` on, the last
    at `total`."""

    def __init__(self, done: Sequence[int], first: int, steps: int, total: int) -> None:
        self.done = done
        self.coming = range(first, total, steps)  # without the last
        self.total = total

    def __len__(self) -> int:
        return len(self.done) + len(self.coming) + 1

    @overload
    def __getitem__(self, epoch: int) -> int: ...
    @overload
    def __getitem__(self, epoch: slice) -> list[int]: ...
    def __getitem__(self, epoch: int | slice) -> int | list[int]:
        if isinstance(epoch, slice):
            return [self[i] for i in range(len(self))[epoch]]
        epoch = range(len(self))[epoch]  # raises IndexError, and counts from the end below zero
        if epoch < len(self.done):
            return self.done[epoch]
        epoch -= len(self.done)
        return self.coming[epoch] if epoch < len(self.coming) else self.total


def epoch_ends(config: EasyDict, sampler: BatchSampler, position: Position = BEGINNING) -> Sequence[int]:
    """Returns the global step at the end of each epoch that a run by the config has; the last may be a partial one.

    position: where the run is. The steps of an epoch depend on the number of processes, which may have been another.
    """
    steps, first = sampler.steps(), position.step + sampler.steps(position.seen)
    left = config.num_epoch - position.epoch  # epochs, with the one under way
    total = config.max_steps or (first + (left - 1) * steps if left > 0 else position.step)
    if position.is_last(config):
        return position.ends or (position.step,)
    return EpochEnds(position.ends, first, steps, total)
