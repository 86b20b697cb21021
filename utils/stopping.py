"""Ctrl-C and SIGTERM: a run that is asked to end does so after a step, with a checkpoint."""

import signal
import sys
from datetime import timedelta
from types import FrameType, TracebackType
from typing import Any, Self

import torch
import torch.distributed as dist

from utils.distributed import World
from utils.errors import heard

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """While it is entered, signals are noted. A second Ctrl-C does what it always does.

    Of several processes any may get the signal, and all must stop at the same step: at every step they say to each
    other whether they were asked to. The answer is awaited a step later, and on the host, so that no device waits.
    """

    def __init__(self, world: World, timeout: int) -> None:
        """timeout: seconds to wait for the others."""
        self.signal = 0  # the one that came
        self._says = world.is_main
        self._group: Any = (
            dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout)) if world.size > 1 else None
        )
        self._told = torch.zeros(1, dtype=torch.int32)
        self._answer: Any = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._answer and kind is None:
            self._answer.wait()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        if self._says:
            with heard(sys.stderr):
                print(f"{signal.Signals(number).name}: ends after this step, with a checkpoint", file=sys.stderr)
        if number == signal.SIGINT:  # torchrun passes SIGTERM on to processes that may have had it already
            signal.signal(number, self._before[number])

    def asked(self) -> int:
        """The signal on which all processes are to stop now, or 0. Called by each of them after every step."""
        if self._group is None:
            return self.signal
        if self._answer:
            self._answer.wait()
            if number := int(self._told):
                self._answer = None
                return number
        self._told.fill_(self.signal)
        self._answer = dist.all_reduce(self._told, dist.ReduceOp.MAX, self._group, async_op=True)
        return 0
