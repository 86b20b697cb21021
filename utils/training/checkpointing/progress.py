"""Progress of a run: its global step, the steps at which its epochs end, and the images seen of the current epoch.

Epoch ends are computed as ranges, so that a run may have any number of epochs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from config.base import Config
from utils.datasets.sampler import BatchSampler
from utils.training.checkpointing.step_ranges import StepRanges


@dataclass(frozen=True)
class TrainProgress:
    """Position of a run in its training schedule. Immutable: `after_step` and `after_epoch` return a new value."""

    step: int = 0  # global steps done
    epoch_end_steps: StepRanges = field(default_factory=StepRanges)  # last global step of each finished epoch
    samples_seen: int = 0  # images of the current epoch that all ranks together have trained on

    @property
    def epoch(self) -> int:
        """Index of the current epoch, counted from 0."""
        return len(self.epoch_end_steps)

    def is_finished(self, config: Config) -> bool:
        """Returns whether the run has reached config.max_steps or, if that is 0, config.num_epoch."""
        return self.step >= config.max_steps if config.max_steps else self.epoch >= config.num_epoch

    def after_step(self, images: int) -> "TrainProgress":
        """Returns the progress after one more step on so many images of all ranks together."""
        return TrainProgress(self.step + 1, self.epoch_end_steps, self.samples_seen + images)

    def after_epoch(self) -> "TrainProgress":
        """Returns the progress at the start of the next epoch."""
        return TrainProgress(self.step, self.epoch_end_steps.append(self.step))


INITIAL_PROGRESS = TrainProgress()


def compute_epoch_end_steps(
    config: Config, sampler: BatchSampler, progress: TrainProgress = INITIAL_PROGRESS
) -> Sequence[int]:
    """Returns the global step at the end of each epoch of the whole run, finished and future; the last may be partial.

    progress: current progress of the run. Finished epochs keep their recorded ends, because the number of ranks,
    and so the number of steps per epoch, may have been different.
    """
    steps_per_epoch = sampler.num_batches()
    current_end = progress.step + sampler.num_batches(progress.samples_seen)
    epochs_left = config.num_epoch - progress.epoch  # including the current one
    last_end = current_end + (epochs_left - 1) * steps_per_epoch if epochs_left > 0 else progress.step
    total = config.max_steps or last_end
    if progress.is_finished(config):
        return progress.epoch_end_steps or (progress.step,)
    return StepRanges(
        *progress.epoch_end_steps.ranges, range(current_end, total, steps_per_epoch), range(total, total + 1)
    )


def progress_from_checkpoint(state: dict[str, Any]) -> TrainProgress:
    """Returns the progress stored in a checkpoint. Raises ValueError for anything but non-negative integers."""
    position = state["position"]
    progress = TrainProgress(position["step"], StepRanges.from_list(position["ends"]), position["seen"])
    if not all(type(number) is int and number >= 0 for number in (progress.step, progress.samples_seen)):
        raise ValueError("step and samples seen should be non-negative integers")
    return progress
