"""Non-finite steps: a step whose loss or gradient is not finite is skipped and counted; too many in a row end a run."""

import json
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from config.base import Config
from utils.distributed.collectives import all_gather_rows, run_on_main
from utils.distributed.process_group import World
from utils.errors import UserError
from utils.filesystem import write_text_atomic
from utils.logs.logger import log

NONFINITE_REPORT_FILE = "bad_steps.json"


def require_finite(name: str | None, step: int, output: str) -> None:
    """Raises UserError unless `name` is None. name: the first tensor to be written that is not finite."""
    if name:
        raise UserError(
            f"{name} is not finite after step {step}: it is not written, the files in {output} stay as they are",
            fix="lower lr, or try precision=fp32",
        )


class NonFiniteGuard:
    """Detects and skips non-finite steps without making the host wait for the device.

    Each step is checked on the device; the host reads the results only when a log line is written. A non-finite step
    changes neither weights nor momentum nor running statistics. No checkpoint is written while the last step was
    non-finite, because the weights themselves may be the cause. All ranks reach the same result.
    """

    def __init__(
        self, network: nn.Module, optimizer: torch.optim.Optimizer, keys: np.ndarray, config: Config, world: World
    ) -> None:
        """network: has the running statistics to protect. keys: record keys of the images, by dataset index."""
        self.optimizer = optimizer
        self.world = world
        self.config = config
        self.keys = keys
        self.total = 0  # non-finite steps of the whole run
        self.consecutive: dict[int, list[int]] = {}  # the latest non-finite steps, with the image keys of all ranks
        self._pending: list[tuple[int, Tensor, Tensor]] = []  # since the last flush: step, indices, non-finite flag
        self._buffers = [buffer for buffer in network.buffers() if buffer.is_floating_point()]
        self._saved_buffers = torch.empty(0)

    def save_buffers(self) -> None:
        """Saves a copy of the running statistics, which the forward pass changes."""
        self._saved_buffers = self._flat_buffers()

    def is_nonfinite(self, step: int, losses: Tensor, norm: Tensor, scale: Tensor, indices: Tensor) -> Tensor:
        """Returns whether the step is non-finite on any rank, a () bool tensor on the device.

        Restores the running statistics if it is. Collective: call on all ranks.

        losses: (n,). norm: of the gradient. scale: of the loss, 1 except in fp16, where the scaler lets the gradient
        overflow now and then by design. While the scale can still be lowered, an overflow alone does not count.
        """
        nonfinite = ~torch.isfinite(losses).all() | (~torch.isfinite(norm) & (scale <= 1))
        if self.world.size > 1:
            on_any_rank = nonfinite.int()
            dist.all_reduce(on_any_rank, dist.ReduceOp.MAX)
            nonfinite = on_any_rank.bool()
        if self._buffers:
            flat = torch.where(nonfinite, self._saved_buffers, self._flat_buffers())
            parts = flat.split([buffer.numel() for buffer in self._buffers])
            torch._foreach_copy_(self._buffers, [p.view_as(b) for p, b in zip(parts, self._buffers, strict=True)])
        self._pending.append((step, indices.clone(), nonfinite))  # a clone, because the loader reuses the memory
        return nonfinite

    def flush(self) -> None:
        """Counts and logs the non-finite steps since the last call. Collective: call on all ranks.

        Raises UserError after config.max_bad_steps of them in a row.
        """
        if not self._pending:
            return
        flags = torch.stack([nonfinite for _, _, nonfinite in self._pending])  # (steps,)
        pending, self._pending = self._pending, []
        found = []
        for (step, indices, _), nonfinite in zip(pending, flags.tolist(), strict=True):
            if not nonfinite:
                self.consecutive = {}
                continue
            found.append(step)
            self.consecutive[step] = all_gather_rows(self.keys[indices.numpy()], self.world).tolist()
            if len(self.consecutive) == self.config.max_bad_steps:
                run_on_main(self.world, self._raise_with_report)
        if found:
            self.total += len(found)
            log.warning(
                f"Loss or gradient not finite in {len(found)} steps, the last is step {found[-1]}: skipped "
                f"({self.total} so far)"
            )

    def last_step_was_nonfinite(self) -> bool:
        """Returns whether the last step was non-finite, the same on all ranks. Collective: call on all ranks."""
        self.flush()
        return bool(self.consecutive)

    def raise_if_last_step_was_nonfinite(self) -> None:
        """Raises UserError if the last step of the run was non-finite. Collective: call on all ranks."""
        if self.last_step_was_nonfinite():
            run_on_main(self.world, self._raise_with_report)

    @torch.no_grad()
    def _flat_buffers(self) -> Tensor:
        """Returns the running statistics as one flat copy."""
        return torch.cat([buffer.flatten() for buffer in self._buffers]) if self._buffers else self._saved_buffers

    def _raise_with_report(self) -> None:
        """Writes the image keys of the latest non-finite steps to bad_steps.json, then raises UserError."""
        lr = self.optimizer.param_groups[0]["lr"]
        path = Path(self.config.output) / NONFINITE_REPORT_FILE
        report = f"the keys of their images are in {path}"
        try:
            write_text_atomic(path, json.dumps({"learning_rate": lr, "keys": self.consecutive}, indent=1) + "\n")
        except OSError as error:
            report = f"the keys of their images could not be written to {path} ({error.strerror})"
        steps = list(self.consecutive)
        raise UserError(
            f"loss or gradient is not finite in {len(steps)} steps in a row, {steps[0]} to {steps[-1]} (learning rate "
            f"{lr:g}); {report}",
            fix="lower lr, or try precision=fp32",
        )
