"""Lines of the doctor's table, built from results, errors and logged warnings of the checks."""

import logging
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from utils.checkpoints.run_file import START_OVER_HINT
from utils.errors import UserError, translate_resource_errors
from utils.logs.logger import log

PASS, WARN, FAIL = "pass", "warn", "fail"
# Fix by subject, for errors and warnings that name none themselves.
_DEFAULT_FIXES = {
    "config": "remove them from the config",
    "data": "copy the files again, or create them again (data/README.md)",
    "images": "copy the files again, or create them again (data/README.md); on_bad_image=skip trains without such "
    "images",
    "sets": "copy it again, or name sets without it: val_targets=NAME,NAME",
    "steps": f"name another output, or {START_OVER_HINT}; check the disk if a file is damaged",
    "task": "copy the file that it names again, or name another",
}


class Check(NamedTuple):
    """Result of a check, one line of the table."""

    subject: str
    state: str  # pass, warn or fail
    found: str
    fix: str = ""


def collect_checks(subject: str, checks: Iterable[Check], state_of_error: str = FAIL) -> Iterator[Check]:
    """Yields the checks, then one for an error that ended them and one for each warning logged meanwhile.

    state_of_error: state of a check made from a UserError, a lack of memory or an OSError.
    """
    with capture_warnings() as warnings:
        try:
            with translate_resource_errors():
                yield from checks
        except (UserError, OSError) as error:
            yield error_check(subject, state_of_error, error)
    yield from (error_check(subject, WARN, warning) for warning in warnings)


@contextmanager
def capture_warnings() -> Iterator[list[object]]:
    """Collects the warnings of the project's log, texts or UserErrors. The log prints nothing inside the block."""
    warnings: list[object] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: warnings.append(record.msg)  # type: ignore[method-assign]
    handlers, propagate = log.handlers, log.propagate
    log.handlers, log.propagate = [handler], False
    try:
        yield warnings
    finally:
        log.handlers, log.propagate = handlers, propagate


def error_check(subject: str, state: str, error: object) -> Check:
    """Returns a check of what an error, or the text of a warning, says; without a fix it has the subject's default."""
    found, fix = (error.problem, error.fix) if isinstance(error, UserError) else (str(error), "")
    if not fix and (match := re.match(r"config (\w+):", found)):
        fix = f"change {match[1]} in the config, or for one run with {match[1]}=…"
    return Check(subject, state, found, fix or _DEFAULT_FIXES.get(subject, "check the file or folder that it names"))


def format_processes(count: int) -> str:
    """Returns the count with its noun, such as "2 processes"."""
    return f"{count} process{'es' * (count > 1)}"


def format_hours(seconds: float) -> str:
    """Returns a time in hours, below 1 hour also in minutes."""
    return f"{seconds / 3600:,.2f} hours" + (f" ({seconds / 60:.1f} minutes)" if seconds < 3600 else "")


def format_bytes(size: float) -> str:
    """Returns a size in GiB, or in MiB below 1 GiB."""
    return f"{size / 2**30:,.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
