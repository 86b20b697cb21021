"""Progress of a long task: a bar on a terminal, otherwise a log line every minute."""

import sys
import time
from types import TracebackType
from typing import Self

from tqdm import tqdm

from utils.logs.logger import log

LOG_INTERVAL = 60  # seconds between two log lines


class ProgressReporter:
    """Context manager that counts finished items out of `total` and shows the progress."""

    def __init__(self, total: int, name: str, unit: str, is_main: bool = True) -> None:
        """name: of the task, such as "lfw 5". unit: of its items, such as "images". is_main: False shows nothing."""
        self.total, self.name, self.unit = total, name, unit
        self._done = 0
        on_terminal = sys.stderr.isatty()
        self._bar = tqdm(total=total, desc=name, unit=unit, leave=False, disable=not (is_main and on_terminal))
        self._writes_lines = is_main and not on_terminal
        self._start = self._last_line = time.monotonic()

    def update(self, count: int = 1) -> None:
        """Adds `count` finished items."""
        self._done += count
        self._bar.update(count)
        now = time.monotonic()
        if self._writes_lines and now - self._last_line >= LOG_INTERVAL and self._done < self.total:
            self._last_line = now
            minutes_left = (now - self._start) / self._done * (self.total - self._done) / 60
            log.info(f"{self.name}: {self._done} of {self.total} {self.unit}, {minutes_left:.1f} minutes to go")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._bar.close()
