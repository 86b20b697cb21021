"""Rows of the check's table, written to a file one by one, so that a stage that is killed leaves those before."""

import json
import math
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from utils.errors import shorten

PASSED, FAILED, MEASURED, LEFT_OUT = "passed", "failed", "measured", "left out"


@dataclass(frozen=True)
class Row:
    """Outcome of one check or measurement of a stage."""

    check: str
    outcome: str  # PASSED, FAILED, MEASURED or LEFT_OUT
    value: float | None = None  # None also where it is not finite: JSON has no such numbers
    unit: str = ""
    limit: float | None = None  # the largest value that passes
    note: str = ""


class Report:
    """Writes the rows of a stage."""

    def __init__(self, path: Path) -> None:
        """path: a file of JSON lines, which is appended to."""
        self._path = path

    def measure(self, check: str, value: float, unit: str, note: str = "") -> None:
        """Writes a measured value, which has no limit."""
        self._write(Row(check, MEASURED, *_finite(value), note=note, unit=unit))

    def compare(
        self, check: str, value: float, limit: float, note: str = "", unit: str = "", also: bool = True
    ) -> None:
        """Writes a value that passes if it is at most `limit`, and if `also` is true. NaN fails."""
        outcome = PASSED if value <= limit and also else FAILED
        note = note if math.isfinite(value) else f"is {value} {note}".strip()
        self._write(Row(check, outcome, *_finite(value), unit, limit, note))

    def expect(self, check: str, passed: bool, note: str = "") -> None:
        """Writes a check that either passes or fails."""
        self._write(Row(check, PASSED if passed else FAILED, note=note))

    def tell(self, check: str, note: str) -> None:
        """Writes a fact in words, such as a version."""
        self._write(Row(check, MEASURED, note=note))

    def leave_out(self, check: str, reason: str) -> None:
        """Writes that a check is left out, and why."""
        self._write(Row(check, LEFT_OUT, note=reason))

    @contextmanager
    def part(self, check: str) -> Iterator[None]:
        """Turns an error of the block into a failed row, so that the stage goes on. Its traceback is printed."""
        try:
            yield
        except Exception as error:  # any error is what the check looks for
            traceback.print_exc()
            self.expect(check, False, f"{type(error).__name__}: {shorten(str(error), 200, quote=False)}")

    def _write(self, row: Row) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps(asdict(row), allow_nan=False) + "\n")


def _finite(value: float) -> tuple[float | None]:
    return (float(value) if math.isfinite(value) else None,)


def read_rows(path: Path) -> list[Row]:
    """Returns the rows of a file. A last line that was cut off is dropped."""
    rows = []
    for line in path.read_text().splitlines(keepends=True) if path.exists() else []:
        if line.endswith("\n"):
            rows.append(Row(**json.loads(line)))
    return rows
