"""How the end of a run is recorded, so that torchrun does not start again what no restart can repair."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from utils.distributed.collectives import all_gather_rows, run_on_main
from utils.distributed.process_group import World
from utils.errors import EXIT_CODE_FILE, RetryableError, RetryableExit, UserError, print_error, restart_count
from utils.filesystem import write_text_atomic

EXIT_STATUS_FILE = ".ended"  # in the run's folder: exit code, launcher


def run_ids(world: World) -> list[str]:
    """What names the run through all restarts: who started its processes, on every machine. Empty without torchrun."""
    mine = os.environ.get(EXIT_CODE_FILE) or os.environ.get("TORCHELASTIC_RUN_ID", "")
    return sorted({str(name) for name in all_gather_rows(np.array([mine]), world) if name})


def was_restarted(world: World) -> bool:
    """Whether torchrun has started the processes again; each machine counts its own restarts."""
    return bool(all_gather_rows(np.array([restart_count()]), world).any())


@contextmanager
def record_exit_status(folder: Path, world: World) -> Iterator[None]:
    """Around a run of this folder: what ends it for good ends it in all its processes, however often they are started.

    folder: of the run; of several machines, one that they share.
    """
    note, names, again = folder / EXIT_STATUS_FILE, run_ids(world), was_restarted(world)
    if code := run_on_main(world, lambda: _read_exit_status(note, names, again)):
        Path(os.environ.get(EXIT_CODE_FILE, os.devnull)).write_text(code)
        raise SystemExit(0)
    try:
        yield
    except (RetryableError, RetryableExit):
        raise
    except UserError as error:
        _write_exit_status(note, names, 2)
        print_error(error)
        raise SystemExit(2) from None
    except SystemExit as end:
        _write_exit_status(note, names, end.code)
        raise


def _read_exit_status(note: Path, names: list[str], again: bool) -> str:
    """The exit code that this run has left; of another run, the note goes."""
    if again and note.is_file():
        code, *of = note.read_text().split("\n")
        if set(of) & set(names):
            return code
    note.unlink(missing_ok=True)
    return ""


def _write_exit_status(note: Path, names: list[str], code: object) -> None:
    if code and int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0)) > restart_count():
        try:
            write_text_atomic(note, "\n".join([str(code), *names]))
        except OSError as error:
            print(f"{note}: {error.strerror}; torchrun starts the run again", file=sys.stderr)
