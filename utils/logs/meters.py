"""Means of losses since the last log line."""

from typing import Any

import torch
from torch import Tensor

from utils.distributed.collectives import all_reduce_mean
from utils.distributed.process_group import World


class MeanMeter:
    """Means of named losses, summed on the device. The host waits for the device only in `compute_and_reset`."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.sums: dict[str, Tensor] = {}
        self.count = torch.zeros((), device=world.device)

    def add(self, losses: dict[str, Tensor], is_nonfinite: Tensor) -> None:
        """Adds the losses of a step, scalars, unless `is_nonfinite`, a bool scalar on the device, is set."""
        for name, value in losses.items():
            value = torch.where(is_nonfinite, 0.0, value.detach().float())
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.count = self.count + ~is_nonfinite

    def compute_and_reset(self) -> dict[str, float]:
        """Returns the means since the last call, over all ranks, and starts again at 0. Collective.

        A mean without any finite step is NaN.
        """
        means = all_reduce_mean(torch.stack(list(self.sums.values())) / self.count, self.world).tolist()
        losses = dict(zip(self.sums, means, strict=True))
        self.load_state_dict({"sums": {}, "count": torch.zeros(())})
        return losses

    def state_dict(self) -> dict[str, Any]:
        """Returns the sums by name and the number of steps, as scalars on the device."""
        return {"sums": self.sums, "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores a `state_dict`. Raises ValueError if its sums or count are not scalars."""
        if any(value.shape for value in (state["count"], *state["sums"].values())):
            raise ValueError("sums should be scalars")
        self.sums = {name: value.to(self.world.device) for name, value in state["sums"].items()}
        self.count = state["count"].to(self.world.device)
