"""Means of losses since the last line of the log."""

from typing import Any

import torch
from torch import Tensor

from utils.distributed.collectives import all_reduce_mean
from utils.distributed.process_group import World


class MeanMeter:
    """Means of named losses, summed on the device: reading them is the only time the host waits for it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.sums: dict[str, Tensor] = {}
        self.count = torch.zeros((), device=world.device)

    def add(self, named: dict[str, Tensor], bad: Tensor) -> None:
        """Adds a step's, unless it is bad: (), bool."""
        for name, value in named.items():
            value = torch.where(bad, 0.0, value.detach().float())
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.count = self.count + ~bad

    def compute_and_reset(self) -> dict[str, float]:
        """The means since the last take, over all processes."""
        means = all_reduce_mean(torch.stack(list(self.sums.values())) / self.count, self.world).tolist()
        named = dict(zip(self.sums, means, strict=True))
        self.load_state_dict({"sums": {}, "count": torch.zeros(())})
        return named

    def state_dict(self) -> dict[str, Any]:
        return {"sums": self.sums, "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a `state`. Raises ValueError where it holds something else than sums."""
        if any(value.shape for value in (state["count"], *state["sums"].values())):
            raise ValueError("sums should be scalars")
        self.sums = {name: value.to(self.world.device) for name, value in state["sums"].items()}
        self.count = state["count"].to(self.world.device)
