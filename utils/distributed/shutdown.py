"""Graceful shutdown: a signal ends a run after the current step with a checkpoint, or only requests a checkpoint."""

import signal
import sys
from contextlib import ExitStack
from datetime import timedelta
from types import FrameType, TracebackType
from typing import Any, NamedTuple, Self

import torch
import torch.distributed as dist

from utils.distributed.blocked import end_if_blocked
from utils.distributed.process_group import World
from utils.distributed.restart import pop_checkpoint_request
from utils.distributed.signals import CHECKPOINT_SIGNALS, STOP_SIGNALS, is_ignored
from utils.errors import ignore_broken_pipe


class Requests(NamedTuple):
    """Requests to a run from any of its ranks. An all-reduce with MAX combines them."""

    stop_signal: int = 0  # 0, or the signal that ends the run, with a checkpoint
    checkpoint: int = 0  # 1: write a checkpoint and continue
    log_line: int = 0  # 1: write a log line


class GracefulShutdown:
    """Context manager that records signals instead of letting them end the process. A second Ctrl-C acts as usual.

    Any rank may receive a signal, and all ranks must act on it at the same step. They all-reduce their requests at
    every step. The result is read one step later, on the host, so that no device waits.
    """

    def __init__(self, world: World, timeout: int) -> None:
        """timeout: seconds after which the all-reduce of requests fails."""
        self.requested_signal = 0  # the signal received that ends the run, or 0
        self.checkpoint_requested = False  # by a signal
        self._prints = world.is_main
        self._on_gpu = world.device.type == "cuda"
        self._guard = ExitStack()
        self._group: Any = (
            dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout)) if world.size > 1 else None
        )
        self._requests = torch.zeros(len(Requests()), dtype=torch.int32)
        self._pending: Any = None
        self._old_handlers: dict[int, Any] = {}

    def __enter__(self) -> Self:
        numbers = [number for number in (*STOP_SIGNALS, *CHECKPOINT_SIGNALS) if not is_ignored(number)]
        self._old_handlers = {number: signal.signal(number, self._record) for number in numbers}
        if self._group and self._on_gpu:
            self._guard.enter_context(end_if_blocked(lambda: self.requested_signal))
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._guard.close()
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)
        if self._pending and kind is None:
            self._pending.wait()

    def _record(self, number: int, frame: FrameType | None) -> None:
        """Records a signal as a request: the handler of all signals."""
        if number in CHECKPOINT_SIGNALS:
            self.checkpoint_requested = True
            return
        self.requested_signal = number
        if self._prints:
            with ignore_broken_pipe(sys.stderr):
                print(f"{signal.Signals(number).name}: stopping after this step, with a checkpoint", file=sys.stderr)
        if number == signal.SIGINT:  # not SIGTERM: torchrun may send it again
            signal.signal(number, self._old_handlers[number])

    def agreed_requests(self, log_line: bool = False) -> Requests:
        """Returns the requests that all ranks agree on. Collective: called after every step.

        With several ranks these are the requests of the previous call.

        log_line: whether this rank requests a log line.
        """
        local = Requests(self.requested_signal, self._pop_checkpoint_request(), log_line)
        if self._group is None:
            return local
        agreed = Requests()
        if self._pending:
            self._pending.wait()
            self._pending = None
            agreed = Requests(*self._requests.tolist())
            if agreed.stop_signal:
                return agreed
        if agreed.log_line:  # the line is written after the next step: not requested again
            local = local._replace(log_line=0)
        self._requests.copy_(torch.tensor(local))
        self._pending = dist.all_reduce(self._requests, dist.ReduceOp.MAX, self._group, async_op=True)
        return agreed

    def _pop_checkpoint_request(self) -> bool:
        """Returns whether a signal or the launcher has requested a checkpoint since the last call."""
        by_signal, self.checkpoint_requested = self.checkpoint_requested, False
        return pop_checkpoint_request() or by_signal
