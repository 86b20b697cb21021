"""The errors of this project that a person can mend, and how entry scripts tell them."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import NoReturn, TextIO

ENDED = "POCKETNET_EXIT_CODE"  # environment: the file by which processes that end well tell utils.launch otherwise


class UserError(ValueError):
    """Bad input: a config, a data file, a checkpoint.

    The message is one line that names the thing, what is wrong with it, and the mend where there is one.
    Entry scripts print it without a traceback and exit with code 2.
    """


class PassingError(UserError):
    """What may go well when it is done again: a process that died or hung."""


def run(main: Callable[[], None]) -> NoReturn:
    """Runs an entry script: exit code 0; 2 and the one line for a UserError; 130 for Ctrl-C."""
    ended = Path(os.environ.get(ENDED, os.devnull))
    if restarts() and ended.is_file():  # by bad input, before the processes had met: it is so still
        sys.exit(0)
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names may hold bytes that are no UTF-8
    try:
        main()
    except UserError as error:
        tell(error)
        # Of several machines the others would wait for this one.
        if not isinstance(error, PassingError) and os.environ.get("GROUP_WORLD_SIZE") == "1":
            ended.write_text("2")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0)


def tell(error: UserError) -> None:
    """Prints the one line."""
    with heard(sys.stderr):
        print(f"error: {error}", file=sys.stderr)


@contextmanager
def heard(stream: TextIO) -> Iterator[None]:
    """Around what is written to the screen: Ctrl-C in `./train.sh | tee FILE` also ends tee, and a run to which nobody
    listens any more still has a checkpoint to write."""
    try:
        yield
        stream.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def restarts() -> int:
    """How often torchrun has started the processes of this machine again."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
