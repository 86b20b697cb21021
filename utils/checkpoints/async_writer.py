"""Writes files in a background thread while training continues."""

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from utils.errors import UserError
from utils.logs.logger import log

WriteJobs = dict[str, Callable[[], None]]  # write functions by file name, run in order; a failure stops those after it


class AsyncFileWriter:
    """Writes files one after another in a background thread.

    A file that cannot be written, for example because the disk is full, is logged, kept, and retried before the next
    one, so training continues and nothing is lost. Only `close`, at the end of a run, raises an error for it.
    """

    def __init__(self) -> None:
        self._pending: list[WriteJobs] = []
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if kind is None:
            self.close()
        else:
            self.wait()

    def submit(self, *batches: WriteJobs) -> None:
        """Starts writing these files. Each replaces a file of the same name that is still pending.

        First waits for the files in progress, so that copies of the weights accumulate only where they cannot be
        written.
        """
        self.wait()
        for batch in filter(None, batches):  # ranks other than 0 submit empty batches
            for pending in self._pending:
                for name in batch:
                    pending.pop(name, None)
            self._pending.append(batch)
        if self._pending:
            self._thread = threading.Thread(target=self._write, name="writer")
            self._thread.start()

    def wait(self) -> None:
        """Blocks until nothing is being written. Files that failed stay pending."""
        if self._thread:
            self._thread.join()
            self._thread = None

    def close(self) -> None:
        """Retries the pending files once. Raises UserError where one still cannot be written."""
        self.wait()
        if self._pending:
            self._write()
        if self._pending:
            names = ", ".join(name for batch in self._pending for name in batch)
            raise UserError(f"{names}: could not be written", fix="free some disk space and start the run again")

    def _write(self) -> None:
        failed: dict[str, str] = {}
        for batch in self._pending:
            try:
                for name, write in list(batch.items()):
                    write()
                    del batch[name]
            except (OSError, RuntimeError) as error:  # RuntimeError: raised by torch's writer
                failed[name] = getattr(error, "strerror", None) or f"{error!s:.200}".partition("\n")[0]
        self._pending = [batch for batch in self._pending if batch]
        if failed:
            log.warning(
                f"{', '.join(failed)}: could not be written ({list(failed.values())[-1]}); training continues, the "
                "next save tries again"
            )
