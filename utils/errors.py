"""The errors of this project that a person can mend, and how entry scripts tell them."""

import errno
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import NoReturn, TextIO

# The environment variable that names the file in which a process leaves its exit code for utils/distributed/launch.py:
# torchrun takes whatever it ends by but 0 for a reason to start it again.
EXIT_CODE_FILE = "POCKETNET_EXIT_CODE"


class UserError(ValueError):
    """Bad input: a config, a data file, a checkpoint.

    The message is one line that names the thing, what is wrong with it, and the mend where there is one.
    Entry scripts print it without a traceback and exit with code 2.
    """


class RetryableExit(SystemExit):
    """Ends a process because another one met a PassingError, which that one prints."""


def one_line(text: object) -> str:
    """Returns a text or path with what cannot be printed, as control characters in a name, written as escapes."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text))


def shorten(value: object, limit: int = 80, quote: bool = True) -> str:
    """Returns a value as messages show it: in one printable line, cut after `limit` characters.

    quote: False shows a text without quotation marks.
    """
    if isinstance(value, str):
        value = value[: limit + 1]
    try:
        text = one_line(repr(value) if quote else value)
    except ValueError:  # in it is an integer of more digits than Python prints
        text = f"a {type(value).__name__} too long to print"
    return text if len(text) <= limit + 2 else text[:limit] + "…"


class RetryableError(UserError):
    """What may go well when it is done again: a process that died or hung."""


# What torch says of sizes that fit no memory, or no integer.
_NO_MEMORY = re.compile(
    "can't allocate memory|out of memory|size calculation overflowed|integer multiplication overflow|"
    "overflow when unpacking long|array is too big",
    re.IGNORECASE,
)


def out_of_memory(error: Exception) -> UserError | None:
    """Returns the one-line error for an exception that says that something does not fit in memory, None for others."""
    if not isinstance(error, MemoryError) and not _NO_MEMORY.search(str(error)):
        return None
    reason = shorten(str(error).partition("\n")[0] or type(error).__name__, 160, quote=False)
    return UserError(
        f"out of memory ({reason}); lower batch_size, workers, or the size of the network (channel, embedding_size, "
        "num_classes)"
    )


def run_cli(main: Callable[[], None]) -> NoReturn:
    """Runs an entry script: exit code 0; 2 and the one line for a UserError or a lack of memory; 130 for Ctrl-C."""
    ended = Path(os.environ.get(EXIT_CODE_FILE, os.devnull))
    if restart_count() and ended.is_file():  # by bad input, before the processes had met: it is so still
        sys.exit(0)
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names may hold bytes that are no UTF-8
    try:
        main()
    except UserError as error:
        print_error(error)
        # Of several machines the others would wait for this one.
        if not isinstance(error, RetryableError) and os.environ.get("GROUP_WORLD_SIZE") == "1":
            ended.write_text("2")
        sys.exit(2)
    except (MemoryError, RuntimeError, TypeError, ValueError) as error:
        if (problem := out_of_memory(error)) is None:
            raise
        print_error(problem)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0)


def print_error(error: UserError) -> None:
    """Prints the one line."""
    with ignore_broken_pipe(sys.stderr):
        print(f"error: {one_line(str(error))}", file=sys.stderr)


@contextmanager
def ignore_broken_pipe(stream: TextIO) -> Iterator[None]:
    """Around what is written to the screen: Ctrl-C in `./train.sh | tee FILE` also ends tee, a terminal may be closed,
    and a run to which nobody listens any more still has a checkpoint to write."""
    try:
        yield
        stream.flush()
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.EIO):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def restart_count() -> int:
    """How often torchrun has started the processes of this machine again."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
