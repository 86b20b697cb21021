"""Writer of TensorBoard event files that survives a full disk."""

import logging
import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

log = logging.getLogger("pocketnet")  # the logger of utils.logs.logger, which imports this module
_BUFFER_SIZE = 1 << 16  # bytes; a point takes about 70


class TensorBoardWriter:
    """Event file of a run. While the disk is full, the file's buffer keeps about 900 points; later ones are lost.

    torch's SummaryWriter writes nothing more after the first error, and its thread prints a traceback.
    """

    def __init__(self, folder: Path, first_step: int, is_main: bool) -> None:
        """Creates the file in `folder`.

        first_step: TensorBoard hides points of this and later steps in the folder's older files. is_main: False
        writes nothing.
        """
        self._first_step = first_step
        self._is_main = is_main
        # TensorBoard reads files in the order of their names.
        self._path = folder / f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
        self._file: BinaryIO | None = None
        self._last_error = ""
        self.add({}, first_step)

    def add(self, values: dict[str, float], step: int) -> None:
        """Adds a point to each named curve. Warns once if the file cannot be written."""
        if not self._is_main:
            return
        try:
            self._write(values, step)
            self._last_error = ""
        except OSError as error:
            reason = error.strerror or str(error)
            if reason != self._last_error:
                log.warning(
                    f"TensorBoard: {self._path.parent} is not writable ({reason}); training continues, points may be "
                    "missing"
                )
            self._last_error = reason

    def _write(self, values: dict[str, float], step: int) -> None:
        if self._file is None or not self._path.is_file():  # at the beginning, or someone has removed it
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("ab", _BUFFER_SIZE)
            self._append(Event(file_version="brain.Event:2"))
            self._append(Event(step=self._first_step, session_log=SessionLog(status=SessionLog.START)))
        for tag, value in values.items():
            self._append(Event(step=step, summary=Summary(value=[Summary.Value(tag=tag, simple_value=value)])))
        self._file.flush()  # after an error it continues where the file ends

    def _append(self, event: Event) -> None:
        event.wall_time = time.time()
        RecordWriter(self._file).write(event.SerializeToString())

    def close(self) -> None:
        """Closes the file. Points that the disk has no room for are lost."""
        if self._file:
            with suppress(OSError):
                self._file.close()
