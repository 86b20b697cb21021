"""The global step at which each epoch of a run ends, by arithmetic: a run may have any number of epochs."""

from collections.abc import Sequence

from easydict import EasyDict

from utils.dataset import BatchSampler
from utils.run_checkpoint import BEGINNING, Position
from utils.step_ranges import StepRanges


def epoch_ends(config: EasyDict, sampler: BatchSampler, position: Position = BEGINNING) -> Sequence[int]:
    """Returns the global step at the end of each epoch that a run by the config has; the last may be a partial one.

    position: where the run is. The steps of an epoch depend on the number of processes, which may have been another.
    """
    steps, first = sampler.steps(), position.step + sampler.steps(position.seen)
    left = config.num_epoch - position.epoch  # epochs, with the one under way
    total = config.max_steps or (first + (left - 1) * steps if left > 0 else position.step)
    if position.is_last(config):
        return position.ends or (position.step,)
    return StepRanges(*position.ends.ranges, range(first, total, steps), range(total, total + 1))
