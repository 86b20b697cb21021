"""Files written behind the training, while it goes on."""

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from utils.errors import UserError
from utils.run_log import log


class Writer:
    """Writes files in a thread, one after another.

    What cannot be written, as when the disk is full, is told, kept, and tried again before the next: training goes on
    and nothing is lost. Only a run's end makes an error of it.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, Callable[[], None]] = {}
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if kind is None:
            self.close()
        else:
            self.wait()

    def submit(self, files: dict[str, Callable[[], None]]) -> None:
        """Writes these soon: what writes each, by name. One that still waits under the name gives way to it.

        Waits for what is under way, so that no copies of the weights pile up but those that cannot be written.
        """
        self.wait()
        for name in files:
            self._waiting.pop(name, None)  # to stand behind what waits longer
        self._waiting |= files
        self._thread = threading.Thread(target=self._write, name="writer")
        self._thread.start()

    def wait(self) -> None:
        """Returns when nothing is being written."""
        if self._thread:
            self._thread.join()
            self._thread = None

    def close(self) -> None:
        """Tries once more what could not be written. Raises UserError where it cannot."""
        self.wait()
        if self._waiting:
            self._write()
        if self._waiting:
            raise UserError(f"{', '.join(self._waiting)}: could not be written; make room and start the run again")

    def _write(self) -> None:
        for name, write in list(self._waiting.items()):
            try:
                write()
            except (OSError, RuntimeError) as error:  # RuntimeError: torch's own writer's
                reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
                log.warning(f"{name}: could not be written ({reason}); training goes on, the next save tries again")
                return  # in their order: the backbone says that the header stands beside it
            del self._waiting[name]
