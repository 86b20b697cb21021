"""Files written behind the training, while it goes on."""

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from utils.errors import UserError
from utils.logs.run_log import log

WriteJobs = dict[str, Callable[[], None]]  # what writes each file, by its name: in order, none without those before it


class AsyncFileWriter:
    """Writes files in a thread, one after another.

    What cannot be written, as when the disk is full, is told, kept, and tried again before the next: training goes on
    and nothing is lost. Only a run's end makes an error of it.
    """

    def __init__(self) -> None:
        self._waiting: list[WriteJobs] = []
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if kind is None:
            self.close()
        else:
            self.wait()

    def submit(self, *batches: WriteJobs) -> None:
        """Writes these soon. A file that still waits under a name of theirs gives way to it.

        Waits for what is under way, so that no copies of the weights pile up but those that cannot be written.
        """
        self.wait()
        for batch in filter(None, batches):  # the other processes have nothing to write
            for waiting in self._waiting:
                for name in batch:
                    waiting.pop(name, None)
            self._waiting.append(batch)
        if self._waiting:
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
            names = ", ".join(name for batch in self._waiting for name in batch)
            raise UserError(f"{names}: could not be written; make room and start the run again")

    def _write(self) -> None:
        failed: dict[str, str] = {}
        for batch in self._waiting:
            try:
                for name, write in list(batch.items()):
                    write()
                    del batch[name]
            except (OSError, RuntimeError) as error:  # RuntimeError: torch's own writer's
                failed[name] = getattr(error, "strerror", None) or f"{error!s:.200}".partition("\n")[0]
        self._waiting = [batch for batch in self._waiting if batch]
        if failed:
            log.warning(
                f"{', '.join(failed)}: could not be written ({list(failed.values())[-1]}); training goes on, the next "
                "save tries again"
            )
