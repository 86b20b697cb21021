"""Writer of TensorBoard event files that loses no points to a full disk."""

import io
import logging
import os
import socket
import time
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

log = logging.getLogger("pocketnet")  # the logger of utils.logs.run_log, which imports this module


class Board:
    """Event file of a run. Points that cannot be written are kept and written with the next points.

    torch's SummaryWriter does not do this: its thread ends at the first error, and its flush can return before that
    error is known, so the content of the file is unknown. Here a failed write is repeated from the end of the last
    complete one. The bytes and their position are the same, so a program that reads along sees no difference.
    """

    def __init__(self, folder: Path, first_step: int, is_main: bool) -> None:
        """Creates the file in `folder`.

        first_step: TensorBoard hides points of this and later steps in the folder's older files. is_main: False
        writes nothing.
        """
        self._is_main = is_main
        # TensorBoard reads files in the order of their names.
        name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
        self._file = folder / name
        self._size = 0  # bytes of the file up to the end of the last complete write
        self._pending = io.BytesIO()  # records to append, about 70 bytes per point
        self._records = RecordWriter(self._pending)
        self._points = 0  # pending
        self._last_error = ""
        self._append(Event(file_version="brain.Event:2"))
        self._append(Event(step=first_step, session_log=SessionLog(status=SessionLog.START)))
        if is_main:
            self._write_or_warn()

    def add(self, values: dict[str, float], step: int) -> None:
        """Adds a point to each named curve. If the file cannot be written, keeps the points and warns once."""
        if not self._is_main:
            return
        for tag, value in values.items():
            self._append(Event(step=step, summary=Summary(value=[Summary.Value(tag=tag, simple_value=value)])))
        self._points += len(values)
        self._write_or_warn()

    def close(self) -> None:
        """Tries to write pending points a last time. Warns how many may be lost if that fails."""
        if self._points and (error := self._write()):
            log.warning(
                f"TensorBoard: up to {self._points} points are lost, {self._file.parent} is not writable ({error})"
            )

    def _append(self, event: Event) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())

    def _write_or_warn(self) -> None:
        error = self._write()
        if error and error != self._last_error:
            log.warning(
                f"TensorBoard: {self._file.parent} is not writable ({error}); training continues, the points are "
                "kept for later"
            )
        self._last_error = error

    def _write(self) -> str:
        """Appends pending records to the file. Returns an empty string, or the message of the system's error."""
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("ab") as file:  # reopened each time: some network disks report errors on close
                size = file.tell()
                if size > self._size:  # after a failed write
                    size = file.truncate(self._size)
                size += file.write(self._pending.getvalue())
        except OSError as error:
            return error.strerror or str(error)
        self._size, self._points = size, 0
        self._pending.seek(0)
        self._pending.truncate()
        return ""
