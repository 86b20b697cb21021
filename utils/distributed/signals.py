"""The signals on which a run ends or leaves a checkpoint. What is ignored at its start stays ignored."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # Ctrl-C, a scheduler, a terminal that closes
CHECKPOINT_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2)  # schedulers send them some time ahead of the end

_DROPPED = "POCKETNET_DROPPED_SIGNALS"  # environment: the names of those that utils/distributed/launch.sh alone ignores


def ignore_checkpoint_signals() -> None:
    """Keeps requests for a checkpoint from ending the process until something handles them: they are dropped.

    Entry scripts call it before the imports that take seconds.
    """
    dropped = os.environ.pop(_DROPPED, "").split()
    for number in CHECKPOINT_SIGNALS:
        if not is_ignored(number) or number.name in dropped:
            signal.signal(number, lambda *_: None)


def is_ignored(number: int) -> bool:
    """Whether the process ignores the signal, as one started by nohup ignores SIGHUP."""
    return signal.getsignal(number) is signal.SIG_IGN


@contextmanager
def handle_signals(numbers: tuple[int, ...], handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Calls the handler for these signals during the block, but for those that the process ignores."""
    before = {number: signal.signal(number, handler) for number in numbers if not is_ignored(number)}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
