"""Ends a process that cannot act on a signal because its main thread waits for a GPU."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from utils.distributed.signals import STOP_SIGNALS

GRACE = 25.0  # seconds


@contextmanager
def end_if_blocked(recorded_signal: Callable[[], int], grace: float = GRACE) -> Iterator[None]:
    """Ends the process inside the block if a signal that ends the run is not handled within `grace` seconds.

    Python runs handlers in the main thread. Where that waits for a collective on a GPU that another process has left,
    it does so until NCCL's time-out, although torchrun has sent SIGTERM. The system's part of a handler runs at once,
    and tells a thread.

    recorded_signal: returns the signal that the handler has recorded, or 0.
    """
    ended = threading.Event()
    reader, writer = os.pipe()

    def watch() -> None:
        while not ended.is_set():
            (number,) = os.read(reader, 1)
            if number in STOP_SIGNALS and not ended.wait(grace) and not recorded_signal():
                os._exit(128 + number)

    os.set_blocking(writer, False)
    old_writer = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    thread = threading.Thread(target=watch, name="end_if_blocked", daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(old_writer)
        ended.set()
        os.write(writer, bytes(1))  # wakes the thread
        thread.join()
        os.close(reader)
        os.close(writer)
