"""Records the exit status of a run, so that torchrun does not restart a run that would fail again."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from utils.distributed.collectives import all_gather_rows, run_on_main
from utils.distributed.process_group import World
from utils.errors import EXIT_CODE_FILE_ENV, RetryableError, RetryableExit, UserError, print_error, restart_count
from utils.filesystem import write_text_atomic

EXIT_STATUS_FILE = ".ended"  # in the output folder; line 1: exit code, further lines: IDs of the run


def run_ids(world: World) -> list[str]:
    """Returns the IDs of the run, one per launcher, which stay the same through all restarts. Collective.

    Returns an empty list without torchrun.
    """
    run_id = os.environ.get(EXIT_CODE_FILE_ENV) or os.environ.get("TORCHELASTIC_RUN_ID", "")
    return sorted({str(name) for name in all_gather_rows(np.array([run_id]), world) if name})


def was_restarted(world: World) -> bool:
    """Returns whether torchrun has restarted processes on any machine. Collective: each machine counts its own."""
    return bool(all_gather_rows(np.array([restart_count()]), world).any())


@contextmanager
def record_exit_status(folder: Path, world: World) -> Iterator[None]:
    """Records the exit status of the block if a restart cannot help, and ends restarted processes of such a run.

    Prints a UserError and exits with code 2. Leaves errors that a restart may resolve to torchrun. Collective.

    folder: the output folder of the run, which all machines share.
    """
    status_file, ids, restarted = folder / EXIT_STATUS_FILE, run_ids(world), was_restarted(world)
    if code := run_on_main(world, lambda: _read_exit_status(status_file, ids, restarted)):
        Path(os.environ.get(EXIT_CODE_FILE_ENV, os.devnull)).write_text(code)
        raise SystemExit(0)
    try:
        yield
    except (RetryableError, RetryableExit):
        raise
    except UserError as error:
        _write_exit_status(status_file, ids, 2)
        print_error(error)
        raise SystemExit(2) from None
    except SystemExit as end:
        _write_exit_status(status_file, ids, end.code)
        raise


def _read_exit_status(status_file: Path, ids: list[str], restarted: bool) -> str:
    """Returns the exit code that this run has recorded, or an empty string. Removes the record of another run."""
    if restarted and status_file.is_file():
        code, *recorded_ids = status_file.read_text().split("\n")
        if set(recorded_ids) & set(ids):
            return code
    status_file.unlink(missing_ok=True)
    return ""


def _write_exit_status(status_file: Path, ids: list[str], code: object) -> None:
    """Records the exit code if it is not 0 and torchrun has restarts left. Prints a line if the disk is full."""
    if code and int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0)) > restart_count():
        try:
            write_text_atomic(status_file, "\n".join([str(code), *ids]))
        except OSError as error:
            print(f"{status_file}: {error.strerror}; torchrun will restart the run", file=sys.stderr)
