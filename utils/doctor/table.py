"""The lines of the doctor's table, made of what the code itself says in errors and warnings."""

import logging
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from utils.checkpoints.run_file import START_OVER_HINT
from utils.errors import UserError, out_of_memory
from utils.logs.run_log import log

PASS, WARN, FAIL = "pass", "warn", "fail"
CLOSE = 0.85  # of what is free: a need beyond it is told as a warning, for needs are estimates
# By subject, for messages that name no mend themselves.
_MENDS = {
    "config": "remove them from the config",
    "data": "copy the files again, or make them anew (data/README.md)",
    "images": "copy the files again, or make them anew (data/README.md); on_bad_image=skip trains without such images",
    "sets": "copy it again, or name sets without it: val_targets=NAME,NAME",
    "resume": f"name another output, or {START_OVER_HINT}; see to the disk where a file is damaged",
    "student": "name other weights with student_pth and student_global_step",
    "teacher": "copy it again, or name another",
}


class Check(NamedTuple):
    """One line of the table."""

    subject: str
    state: str  # pass, warn or fail
    found: str
    fix: str = ""


def heard(subject: str, checks: Iterable[Check], wrong: str = FAIL) -> Iterator[Check]:
    """The checks; then, as checks, an error that ended them (`wrong`) and the warnings that were logged meanwhile."""
    with _listening() as messages:
        try:
            yield from checks
        except (UserError, OSError) as error:
            yield Check(subject, wrong, *split_message(subject, str(error)))
        except (MemoryError, RuntimeError, TypeError, ValueError) as error:
            if (problem := out_of_memory(error)) is None:
                raise
            yield Check(subject, FAIL, *split_message(subject, str(problem)))
    yield from (Check(subject, WARN, *split_message(subject, message)) for message in messages)


@contextmanager
def _listening() -> Iterator[list[str]]:
    """Collects the warnings of the project's log, which says nothing elsewhere meanwhile."""
    messages: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    before = log.handlers, log.propagate
    log.handlers, log.propagate = [handler], False
    try:
        yield messages
    finally:
        log.handlers, log.propagate = before


def split_message(subject: str, message: str) -> tuple[str, str]:
    """What was found, and the mend: the message's own, or else the subject's."""
    found, _, fix = message.partition("; ")
    if not fix and (match := re.match(r"config (\w+):", found)):
        fix = f"change {match[1]} in the config, or for one run with {match[1]}=…"
    return found, fix or _MENDS.get(subject, "see to the file or folder that it names")


def weighed(subject: str, need: float, free: float, found: str, fix: str) -> Check:
    """Whether what is needed fits into what is free, both in bytes."""
    state = FAIL if need > free else WARN if need > CLOSE * free else PASS
    return Check(subject, state, found, "" if state == PASS else fix)


def unknown(subject: str) -> Check:
    """Of a subject that needs what the data would have told."""
    return Check(subject, WARN, "not checked, for it takes the data", "mend those, then ask again")


def format_processes(count: int) -> str:
    """So many, in words."""
    return f"{count} process{'es' * (count > 1)}"


def format_bytes(size: float) -> str:
    """Bytes, in words."""
    return f"{size / 2**30:,.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
