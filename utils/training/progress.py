"""The global step at which each epoch of a run ends, by arithmetic: a run may have any number of epochs."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from easydict import EasyDict

from utils.datasets.sampler import BatchSampler
from utils.training.step_ranges import StepRanges


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


@dataclass(frozen=True)
class Position:
    """How far a run is."""

    step: int = 0  # global steps done
    ends: StepRanges = field(default_factory=StepRanges)  # the step at the end of each epoch that is done
    seen: int = 0  # images that all processes together have taken of the epoch now under way

    @property
    def epoch(self) -> int:
        """The one now under way."""
        return len(self.ends)

    def is_last(self, config: EasyDict) -> bool:
        """Whether a run by the config has nothing more to do."""
        return self.step >= config.max_steps if config.max_steps else self.epoch >= config.num_epoch

    def after_step(self, images: int) -> "Position":
        """One step further; images: of all processes."""
        return Position(self.step + 1, self.ends, self.seen + images)

    def after_epoch(self) -> "Position":
        """At the start of the next epoch."""
        return Position(self.step, self.ends.append(self.step))


BEGINNING = Position()


def position_of(state: dict[str, Any]) -> Position:
    """Where it is. Raises ValueError where it holds something else than whole numbers."""
    position = state["position"]
    found = Position(position["step"], StepRanges.load(position["ends"]), position["seen"])
    if not all(type(number) is int and number >= 0 for number in (found.step, found.seen)):
        raise ValueError("a position is of whole numbers")
    return found
