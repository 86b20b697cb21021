"""TensorBoard's event files, written so that a full disk costs no point."""

import io
import logging
import os
import socket
import time
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

log = logging.getLogger("pocketnet")  # that of utils.logs.run_log, which imports this module


class Board:
    """The curves of a run, in a file of their own. What cannot be written is kept, and written with the next points.

    torch's SummaryWriter would not do: its thread ends at the first error, for good, and its flush can return before
    that error is known, so that nobody can say which points the file has. Here a write that failed is done again from
    where the file was last whole: the same bytes in the same place, so that a reader that follows it sees no seam.
    """

    def __init__(self, folder: Path, first_step: int, is_main: bool) -> None:
        """first_step: what the folder's other files have of it and of later steps is hidden by TensorBoard.

        is_main: False on a process that writes nothing.
        """
        self._is_main = is_main
        name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"  # read in this order
        self._file = folder / name
        self._size = 0  # bytes of the file that are known to be whole
        self._waiting = io.BytesIO()  # what comes behind them, some 70 bytes a point
        self._records = RecordWriter(self._waiting)
        self._points = 0  # that wait
        self._told = ""
        self._keep(Event(file_version="brain.Event:2"))
        self._keep(Event(step=first_step, session_log=SessionLog(status=SessionLog.START)))
        if is_main:
            self._write_or_tell()

    def add(self, values: dict[str, float], step: int) -> None:
        """Writes a point to each of the named curves, or keeps it where that fails and says so, once."""
        if not self._is_main:
            return
        for tag, value in values.items():
            self._keep(Event(step=step, summary=Summary(value=[Summary.Value(tag=tag, simple_value=value)])))
        self._points += len(values)
        self._write_or_tell()

    def close(self) -> None:
        """Tries once more to write the points that wait, and says how many may be lost where it cannot."""
        if self._points and (trouble := self._write()):
            log.warning(
                f"TensorBoard: up to {self._points} points are lost, {self._file.parent} is not writable ({trouble})"
            )

    def _keep(self, event: Event) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())

    def _write_or_tell(self) -> None:
        trouble = self._write()
        if trouble and trouble != self._told:
            log.warning(
                f"TensorBoard: {self._file.parent} is not writable ({trouble}); training goes on, the points are kept "
                "for later"
            )
        self._told = trouble

    def _write(self) -> str:
        """Appends what waits to the file. Returns what the system says where it cannot, else nothing."""
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("ab") as file:  # anew each time: some network disks tell at closing that they are full
                size = file.tell()
                if size > self._size:  # by a write that failed
                    size = file.truncate(self._size)
                size += file.write(self._waiting.getvalue())
        except OSError as error:
            return error.strerror or str(error)
        self._size, self._points = size, 0
        self._waiting.seek(0)
        self._waiting.truncate()
        return ""
