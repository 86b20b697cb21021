"""Signals that reach a run: after a step it ends with a checkpoint, or leaves one and goes on."""

import signal
import sys
from datetime import timedelta
from types import FrameType, TracebackType
from typing import Any, NamedTuple, Self

import torch
import torch.distributed as dist

from utils.distributed.process_group import World, launcher_folder
from utils.distributed.signals import CHECKPOINT_SIGNALS, STOP_SIGNALS, is_ignored
from utils.errors import ignore_broken_pipe

SAVE_FILE = "save"  # this file in the launcher's folder asks for a checkpoint


class Requests(NamedTuple):
    """What is asked of a run, by any of its processes."""

    signal: int = 0  # to end by this signal, with a checkpoint
    save: int = 0  # 1: to write a checkpoint and go on
    report: int = 0  # 1: to write a line of the log


class GracefulShutdown:
    """While it is entered, signals are noted. A second Ctrl-C does what it always does.

    Of several processes any may get the signal, and all must act at the same step: at every step they tell each
    other what they were asked for. The answer is awaited a step later, and on the host, so that no device waits.
    """

    def __init__(self, world: World, timeout: int) -> None:
        """timeout: seconds to wait for the others."""
        self.signal = 0  # the one that came, and ends the run
        self.save = False  # whether a checkpoint was asked for
        self._says = world.is_main
        self._group: Any = (
            dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout)) if world.size > 1 else None
        )
        folder = launcher_folder()
        self._save_file = folder / SAVE_FILE if folder else None
        self._sent = torch.zeros(len(Requests()), dtype=torch.int32)
        self._answer: Any = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        numbers = [number for number in (*STOP_SIGNALS, *CHECKPOINT_SIGNALS) if not is_ignored(number)]
        self._before = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._answer and kind is None:
            self._answer.wait()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number in CHECKPOINT_SIGNALS:
            self.save = True
            return
        self.signal = number
        if self._says:
            with ignore_broken_pipe(sys.stderr):
                print(f"{signal.Signals(number).name}: ends after this step, with a checkpoint", file=sys.stderr)
        if number == signal.SIGINT:  # torchrun passes SIGTERM on to processes that may have had it already
            signal.signal(number, self._before[number])

    def agreed_requests(self, report: bool = False) -> Requests:
        """What all processes are to do now. Called by each of them after every step.

        report: whether this process asks for a line of the log.
        """
        mine = Requests(self.signal, self._take_save(), report)
        if self._group is None:
            return mine
        agreed = Requests()
        if self._answer:
            self._answer.wait()
            self._answer = None
            agreed = Requests(*self._sent.tolist())
            if agreed.signal:
                return agreed
        if agreed.report:  # the line comes with the next step
            mine = mine._replace(report=0)
        self._sent.copy_(torch.tensor(mine))
        self._answer = dist.all_reduce(self._sent, dist.ReduceOp.MAX, self._group, async_op=True)
        return agreed

    def _take_save(self) -> bool:
        """Whether a checkpoint has been asked for since the last call, by a signal or by the launcher's file."""
        save, self.save = self.save, False
        if self._save_file:
            try:
                self._save_file.unlink()  # one of the processes finds it
                return True
            except FileNotFoundError:
                pass
        return save
