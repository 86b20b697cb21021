"""The check of all labels of a large data set, in a thread while the run trains."""

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

_STOP_TIMEOUT = 5.0  # seconds to wait for the thread to end; a disk that does not answer may hold it longer


class LabelCheck:
    """Runs a check in a thread. A context manager: its exit ends the thread, whether the check is complete or not."""

    def __init__(self, check: Callable[[Callable[[], None]], None] | None = None) -> None:
        """check: raises UserError for a wrong label. It gets a function to call often, which may end it by an error.

        None: there is nothing to check.
        """
        self.pending_error: Exception | None = None  # what the check has raised so far
        self._check = check
        self._thread: threading.Thread | None = None
        self._is_stopped = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._is_stopped.set()
        if self._thread:
            self._thread.join(_STOP_TIMEOUT)

    def start(self) -> None:
        """Starts the check, unless it has started before."""
        if self._check and not self._thread:
            self._thread = threading.Thread(target=self._run, args=(self._check,), name="label_check", daemon=True)
            self._thread.start()

    def raise_pending_error(self) -> None:
        """Waits until all labels are checked; raises what the check has raised."""
        self.start()
        if self._thread:
            self._thread.join()
        if self.pending_error:
            raise self.pending_error

    def _run(self, check: Callable[[Callable[[], None]], None]) -> None:
        try:
            check(self._raise_if_stopped)
        except _Stopped:
            pass
        except Exception as error:  # the main thread raises it
            self.pending_error = error

    def _raise_if_stopped(self) -> None:
        if self._is_stopped.is_set():
            raise _Stopped


class _Stopped(BaseException):
    """Ends the check."""
