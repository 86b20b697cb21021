"""The logger of the project: lines on the screen, above a progress bar, and in a file."""

import logging
import os
import sys
from io import TextIOWrapper
from pathlib import Path

from tqdm import tqdm

from utils.errors import UserError, ignore_broken_pipe, one_line
from utils.filesystem import open_no_follow

log = logging.getLogger("pocketnet")


class _BarSafeHandler(logging.StreamHandler):
    """Writes log lines above the progress bar, if there is one on the screen."""

    def emit(self, record: logging.LogRecord) -> None:
        with ignore_broken_pipe(self.stream):
            tqdm.write(self.format(record), file=self.stream)


class _OneLineFormatter(logging.Formatter):
    """Formats a message as one line: file names in it may contain line breaks and other control characters."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (logging's name)
        return one_line(super().formatMessage(record))


class _LogFile(logging.FileHandler):
    """Log file. A failing write is reported on the screen once and does not end the run: the screen has all lines."""

    has_reported_error = False

    def _open(self) -> TextIOWrapper:
        """Opens the file for appending. Raises UserError for a symbolic link."""
        descriptor = open_no_follow(Path(self.baseFilename), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        return open(descriptor, "a", encoding=self.encoding, errors=self.errors)  # noqa: PTH123 (a descriptor)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self.has_reported_error:
            self.has_reported_error = True
            tqdm.write(f"{self.baseFilename}: could not be written ({error.strerror}); the run continues", sys.stderr)


def init_logging(file: Path | None, prefix: str = "") -> None:
    """Sends the project's log lines to the screen and appends them to the file.

    Raises UserError if the file cannot be opened.

    file: None on ranks other than 0, which log errors only. prefix: written before each line, such as "Training: ".
    """
    log.handlers.clear()
    log.propagate = False
    log.setLevel(logging.INFO if file else logging.ERROR)
    handlers: list[logging.Handler] = [_BarSafeHandler(sys.stdout)]
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            handlers.append(_LogFile(file, encoding="utf-8", errors="backslashreplace"))
        except OSError as error:
            raise UserError(f"{file}: cannot be written ({error.strerror})") from None
    for handler in handlers:
        handler.setFormatter(_OneLineFormatter(f"{prefix}%(asctime)s-%(message)s"))
        log.addHandler(handler)
