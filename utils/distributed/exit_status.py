"""How the end of a run is recorded, so that torchrun does not start again what no restart can repair."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from utils.distributed.collectives import gather_rows, on_main
from utils.distributed.process_group import World
from utils.errors import ENDED, PassingError, RetryableExit, UserError, restarts, tell
from utils.filesystem import replace_text

NOTE = ".ended"  # in the run's folder: exit code, launcher


def launchers(world: World) -> list[str]:
    """What names the run through all restarts: who started its processes, on every machine. Empty without torchrun."""
    mine = os.environ.get(ENDED) or os.environ.get("TORCHELASTIC_RUN_ID", "")
    return sorted({str(name) for name in gather_rows(np.array([mine]), world) if name})


def restarted(world: World) -> bool:
    """Whether torchrun has started the processes again; each machine counts its own restarts."""
    return bool(gather_rows(np.array([restarts()]), world).any())


@contextmanager
def ending(folder: Path, world: World) -> Iterator[None]:
    """Around a run of this folder: what ends it for good ends it in all its processes, however often they are started.

    folder: of the run; of several machines, one that they share.
    """
    note, names, again = folder / NOTE, launchers(world), restarted(world)
    if code := on_main(world, lambda: _code(note, names, again)):
        Path(os.environ.get(ENDED, os.devnull)).write_text(code)
        raise SystemExit(0)
    try:
        yield
    except (PassingError, RetryableExit):
        raise
    except UserError as error:
        _note(note, names, 2)
        tell(error)
        raise SystemExit(2) from None
    except SystemExit as end:
        _note(note, names, end.code)
        raise


def _code(note: Path, names: list[str], again: bool) -> str:
    """The exit code that this run has left; of another run, the note goes."""
    if again and note.is_file():
        code, *of = note.read_text().split("\n")
        if set(of) & set(names):
            return code
    note.unlink(missing_ok=True)
    return ""


def _note(note: Path, names: list[str], code: object) -> None:
    if code and int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0)) > restarts():
        try:
            replace_text(note, "\n".join([str(code), *names]))
        except OSError as error:
            print(f"{note}: {error.strerror}; torchrun starts the run again", file=sys.stderr)
