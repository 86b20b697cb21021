"""The one error of this project that a person can mend, and how entry scripts tell it."""

import sys
from collections.abc import Callable
from typing import NoReturn


class UserError(ValueError):
    """Bad input: a config, a data file, a checkpoint.

    The message is one line that names the thing, what is wrong with it, and the mend where there is one.
    Entry scripts print it without a traceback and exit with code 2.
    """


class PassingError(UserError):
    """What may go well when it is done again: a process that died or hung."""


def run(main: Callable[[], None]) -> NoReturn:
    """Runs an entry script: exit code 0; 2 and the one line for a UserError; 130 for Ctrl-C."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0)
