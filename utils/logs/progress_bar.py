"""How far a long piece of work is: a bar on a terminal, else a line of the log every minute."""

import sys
import time
from types import TracebackType
from typing import Self

from tqdm import tqdm

from utils.logs.run_log import log

EVERY = 60  # seconds between two lines


class Progress:
    """Counts what is done of `total` things, and says it while it is entered."""

    def __init__(self, total: int, name: str, unit: str, is_main: bool = True) -> None:
        """name: of the work. unit: its things, as images. is_main: False on a process that says nothing."""
        self.total, self.name, self.unit = total, name, unit
        self._done = 0
        on_terminal = sys.stderr.isatty()
        self._bar = tqdm(total=total, desc=name, unit=unit, leave=False, disable=not (is_main and on_terminal))
        self._has_lines = is_main and not on_terminal
        self._started = self._last_line = time.monotonic()

    def update(self, count: int = 1) -> None:
        """So many more are done."""
        self._done += count
        self._bar.update(count)
        now = time.monotonic()
        if self._has_lines and now - self._last_line >= EVERY and self._done < self.total:
            self._last_line = now
            left = (now - self._started) / self._done * (self.total - self._done) / 60
            log.info(f"{self.name}: {self._done} of {self.total} {self.unit}, {left:.1f} minutes to go")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._bar.close()
