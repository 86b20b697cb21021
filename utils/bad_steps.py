"""Steps whose loss or gradient is not finite: they are left out, counted, and, too many in a row, the end of a run."""

import json
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from easydict import EasyDict
from torch import Tensor, nn

from utils.distributed import World, gather_rows, together
from utils.errors import UserError
from utils.run_log import log

FILE = "bad_steps.json"


class BadSteps:
    """Leaves bad steps out without the host waiting for the device: it judges there, and reads the verdicts when the
    log is written.

    A bad step changes nothing: no weight, no momentum, no running statistics. The gradients are the mean of all
    processes', so that all find the same.
    """

    def __init__(self, backbone: nn.Module, keys: np.ndarray, config: EasyDict, world: World) -> None:
        """keys: of the data set's images, by index."""
        self.world = world
        self.config = config
        self.keys = keys
        self.total = 0
        self.in_a_row: list[tuple[int, Tensor]] = []  # the last steps, all bad, with the images' indices
        self._since: list[tuple[int, Tensor, Tensor]] = []  # since the last line: step, indices, whether it was bad
        self._buffers = [buffer for buffer in backbone.buffers() if buffer.is_floating_point()]
        self._kept = torch.empty(0)

    def before(self) -> None:
        """Keeps the running statistics, which the forward pass changes."""
        self._kept = self._flat()

    def judge(self, step: int, loss: Tensor, norm: Tensor, indices: Tensor, half: bool) -> Tensor:
        """Whether the step is bad: (), bool, on the device. Puts the running statistics back if it is.

        norm: of the backbone's gradient. half: that of fp16 overflows now and then, as its scaler means it to, and
        that alone makes no bad step.
        """
        finite = torch.isfinite(loss.detach())
        bad = ~(finite if half else finite & torch.isfinite(norm))
        if self._buffers:
            whole = torch.where(bad, self._kept, self._flat())
            parts = whole.split([buffer.numel() for buffer in self._buffers])
            torch._foreach_copy_(self._buffers, [p.view_as(b) for p, b in zip(parts, self._buffers, strict=True)])
        self._since.append((step, indices.clone(), bad))  # a copy: the loader uses the memory again
        return bad

    def check(self, lr: float) -> None:
        """Counts and tells the bad steps since the last call. Raises UserError after config.max_bad_steps in a row."""
        bad = torch.stack([verdict for _, _, verdict in self._since]).int()  # (steps,)
        if self.world.size > 1:
            dist.all_reduce(bad, dist.ReduceOp.MAX)  # a loss is one process's, the gradients are of all
        steps, verdicts = self._since, bad.tolist()
        self._since = []
        found = []
        for (step, indices, _), is_bad in zip(steps, verdicts, strict=True):
            self.in_a_row = [*self.in_a_row, (step, indices)] if is_bad else []
            found += [step] * is_bad
            if len(self.in_a_row) == self.config.max_bad_steps:
                together(self.world, lambda: self._end(lr))
        if found:
            self.total += len(found)
            log.warning(
                f"Loss or gradient not finite in {len(found)} steps, the last is step {found[-1]}: left out "
                f"({self.total} so far)"
            )

    @torch.no_grad()
    def _flat(self) -> Tensor:
        return torch.cat([buffer.flatten() for buffer in self._buffers]) if self._buffers else self._kept

    def _end(self, lr: float) -> None:
        """Writes down the images of the bad steps, and raises UserError."""
        mine = np.array([self.keys[indices.numpy()] for _, indices in self.in_a_row])  # (steps, B)
        keys = np.split(gather_rows(mine, self.world), self.world.size)  # of each process
        steps = [step for step, _ in self.in_a_row]
        path = Path(self.config.output) / FILE
        if self.world.is_main:
            batches = {step: np.concatenate([of[i] for of in keys]).tolist() for i, step in enumerate(steps)}
            path.write_text(json.dumps({"learning_rate": lr, "keys": batches}, indent=1) + "\n")
        raise UserError(
            f"loss or gradient is not finite in {len(steps)} steps in a row, {steps[0]} to {steps[-1]} (learning rate "
            f"{lr:g}); the keys of their images are in {path}; lower lr, or try precision=fp32"
        )
