"""Steps whose loss or gradient is not finite: they are left out, counted, and, too many in a row, the end of a run."""

import json
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from easydict import EasyDict
from torch import Tensor, nn

from utils.distributed.collectives import all_gather_rows, run_on_main
from utils.distributed.process_group import World
from utils.errors import UserError
from utils.filesystem import write_text_atomic
from utils.logs.run_log import log

REPORT_FILE = "bad_steps.json"


def require_finite(name: str | None, step: int, output: str) -> None:
    """Raises UserError where a tensor that is to be written is not finite. name: the first such tensor's, or None."""
    if name:
        raise UserError(
            f"{name} is not finite after step {step}: it is not written, what {output} holds stays as it is; lower lr, "
            "or try precision=fp32"
        )


class NonFiniteGuard:
    """Leaves bad steps out without the host waiting for the device: it judges there, and reads the verdicts when the
    log is written.

    A bad step changes nothing: no weight, no momentum, no running statistics; nor is a checkpoint written while the
    last step was bad, for the weights may be what made it so. All processes judge the same.
    """

    def __init__(
        self, backbone: nn.Module, optimizer: torch.optim.Optimizer, keys: np.ndarray, config: EasyDict, world: World
    ) -> None:
        """keys: of the data set's images, by index."""
        self.optimizer = optimizer
        self.world = world
        self.config = config
        self.keys = keys
        self.total = 0
        self.in_a_row: dict[int, list[int]] = {}  # the last steps, all bad, and the keys of all processes' images
        self._since: list[tuple[int, Tensor, Tensor]] = []  # since the last line: step, indices, whether it was bad
        self._buffers = [buffer for buffer in backbone.buffers() if buffer.is_floating_point()]
        self._kept = torch.empty(0)

    def save_buffers(self) -> None:
        """Keeps the running statistics, which the forward pass changes."""
        self._kept = self._flat()

    def is_nonfinite(self, step: int, losses: Tensor, norm: Tensor, scale: Tensor, indices: Tensor) -> Tensor:
        """Whether the step is bad for any process: (), bool, on the device. Puts the running statistics back if it is.

        losses: (n,). norm: of the gradients. scale: of the loss, 1 but under fp16, whose gradients overflow now and
        then, as its scaler means them to: while there is a smaller scale, that alone makes no bad step.
        """
        bad = ~torch.isfinite(losses).all() | (~torch.isfinite(norm) & (scale <= 1))
        if self.world.size > 1:
            worst = bad.int()
            dist.all_reduce(worst, dist.ReduceOp.MAX)
            bad = worst.bool()
        if self._buffers:
            whole = torch.where(bad, self._kept, self._flat())
            parts = whole.split([buffer.numel() for buffer in self._buffers])
            torch._foreach_copy_(self._buffers, [p.view_as(b) for p, b in zip(parts, self._buffers, strict=True)])
        self._since.append((step, indices.clone(), bad))  # a copy: the loader uses the memory again
        return bad

    def flush(self) -> None:
        """Counts and tells the bad steps since the last call; every process takes part. Raises UserError after
        config.max_bad_steps in a row."""
        if not self._since:
            return
        verdicts = torch.stack([verdict for _, _, verdict in self._since])  # (steps,)
        since, self._since = self._since, []
        found = []
        for (step, indices, _), bad in zip(since, verdicts.tolist(), strict=True):
            if not bad:
                self.in_a_row = {}
                continue
            found.append(step)
            self.in_a_row[step] = all_gather_rows(self.keys[indices.numpy()], self.world).tolist()
            if len(self.in_a_row) == self.config.max_bad_steps:
                run_on_main(self.world, self._end)
        if found:
            self.total += len(found)
            log.warning(
                f"Loss or gradient not finite in {len(found)} steps, the last is step {found[-1]}: left out "
                f"({self.total} so far)"
            )

    def last_step_was_nonfinite(self) -> bool:
        """Whether the last step was bad, the same on every process."""
        self.flush()
        return bool(self.in_a_row)

    def raise_if_last_step_was_nonfinite(self) -> None:
        """Raises UserError if the last step of a run was bad; every process takes part."""
        if self.last_step_was_nonfinite():
            run_on_main(self.world, self._end)

    @torch.no_grad()
    def _flat(self) -> Tensor:
        return torch.cat([buffer.flatten() for buffer in self._buffers]) if self._buffers else self._kept

    def _end(self) -> None:
        """Writes down the images of the bad steps, and raises UserError."""
        lr = self.optimizer.param_groups[0]["lr"]
        path = Path(self.config.output) / REPORT_FILE
        kept = f"the keys of their images are in {path}"
        try:
            write_text_atomic(path, json.dumps({"learning_rate": lr, "keys": self.in_a_row}, indent=1) + "\n")
        except OSError as error:
            kept = f"the keys of their images could not be written to {path} ({error.strerror})"
        steps = list(self.in_a_row)
        raise UserError(
            f"loss or gradient is not finite in {len(steps)} steps in a row, {steps[0]} to {steps[-1]} (learning rate "
            f"{lr:g}); {kept}; lower lr, or try precision=fp32"
        )
