"""The global step at which each epoch of a run ends, by arithmetic: a run may have any number of epochs."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from easydict import EasyDict

from utils.datasets.sampler import BatchSampler
from utils.training.step_ranges import StepRanges


@dataclass(frozen=True)
class TrainProgress:
    """How far a run is."""

    step: int = 0  # global steps done
    epoch_end_steps: StepRanges = field(default_factory=StepRanges)  # the step at the end of each epoch that is done
    samples_seen: int = 0  # images that all processes together have taken of the epoch now under way

    @property
    def epoch(self) -> int:
        """The one now under way."""
        return len(self.epoch_end_steps)

    def is_finished(self, config: EasyDict) -> bool:
        """Whether a run by the config has nothing more to do."""
        return self.step >= config.max_steps if config.max_steps else self.epoch >= config.num_epoch

    def after_step(self, images: int) -> "TrainProgress":
        """One step further; images: of all processes."""
        return TrainProgress(self.step + 1, self.epoch_end_steps, self.samples_seen + images)

    def after_epoch(self) -> "TrainProgress":
        """At the start of the next epoch."""
        return TrainProgress(self.step, self.epoch_end_steps.append(self.step))


INITIAL_PROGRESS = TrainProgress()


def epoch_ends(config: EasyDict, sampler: BatchSampler, progress: TrainProgress = INITIAL_PROGRESS) -> Sequence[int]:
    """Returns the global step at the end of each epoch that a run by the config has; the last may be a partial one.

    position: where the run is. The steps of an epoch depend on the number of processes, which may have been another.
    """
    steps, first = sampler.steps(), progress.step + sampler.steps(progress.samples_seen)
    left = config.num_epoch - progress.epoch  # epochs, with the one under way
    total = config.max_steps or (first + (left - 1) * steps if left > 0 else progress.step)
    if progress.is_finished(config):
        return progress.epoch_end_steps or (progress.step,)
    return StepRanges(*progress.epoch_end_steps.ranges, range(first, total, steps), range(total, total + 1))


def progress_from_checkpoint(state: dict[str, Any]) -> TrainProgress:
    """Where it is. Raises ValueError where it holds something else than whole numbers."""
    progress = state["position"]
    found = TrainProgress(progress["step"], StepRanges.load(progress["ends"]), progress["seen"])
    if not all(type(number) is int and number >= 0 for number in (found.step, found.samples_seen)):
        raise ValueError("a position is of whole numbers")
    return found
