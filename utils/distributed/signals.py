"""Signals that end a run or request a checkpoint. A signal that is ignored at the start stays ignored."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # Ctrl-C, a scheduler, a closed terminal
CHECKPOINT_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2)  # schedulers send them some time before the end

_DROPPED = "POCKETNET_DROPPED_SIGNALS"  # environment variable: signals ignored by launch.sh only


def ignore_checkpoint_signals() -> None:
    """Drops signals that request a checkpoint, which would end the process, until something handles them.

    Entry scripts call it before the imports, which take seconds.
    """
    dropped = os.environ.pop(_DROPPED, "").split()
    for number in CHECKPOINT_SIGNALS:
        if not is_ignored(number) or number.name in dropped:
            signal.signal(number, lambda *_: None)


def is_ignored(number: int) -> bool:
    """Returns whether the process ignores the signal, as a process started with nohup ignores SIGHUP."""
    return signal.getsignal(number) is signal.SIG_IGN


@contextmanager
def handle_signals(numbers: tuple[int, ...], handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Handles these signals with `handler` during the block, except those that the process ignores."""
    old_handlers = {number: signal.signal(number, handler) for number in numbers if not is_ignored(number)}
    try:
        yield
    finally:
        for number, old_handler in old_handlers.items():
            signal.signal(number, old_handler)
