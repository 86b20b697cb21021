"""The restart protocol: files, variables and exit codes by which launcher, torchrun and processes agree on restarts.

torchrun restarts all processes of a run whenever one of them exits with another code than 0. Bad input and a requested
stop end a run for good instead: the process leaves its exit code in a file before it exits. torchrun restarts the
processes, which find the code, pass it on to other machines and exit with 0. torchrun takes that for the end of the
run, and the launcher exits with the code in the file.

Files in the private folder of a launcher, `launch.py`; each machine has one, removed when the launcher ends:

    exit-code           written by processes that end the run for good; read by restarted processes and the launcher
    checkpoint-request  written by the launcher at SIGUSR1 and SIGUSR2; read and removed by a rank after its next step
    rendezvous          torchrun's own, on one machine
    store-N             rendezvous of the process group after N restarts, on one machine

Files in the output folder:

    .lock               locked by rank 0 while it runs (`run_lock.py`); it stays in the folder
    checkpoint.pth      its field "run" holds the IDs of the run: with --resume 0, a restarted run resumes from its own

Environment variables of a process:

    POCKETNET_LAUNCHER_FOLDER   set by the launcher: its folder
    POCKETNET_DROPPED_SIGNALS   set by launch.sh, removed by the entry script (`signals.py`)
    TORCHELASTIC_RESTART_COUNT, TORCHELASTIC_RUN_ID, GROUP_WORLD_SIZE   set by torchrun

Exit codes of a process:

    0      the run is complete, or an earlier process has ended it for good
    2      a UserError, for good; a RetryableError or a lack of memory, after which torchrun restarts the run
    128+N  a stop requested by signal N, with a checkpoint, for good
    other  an unexpected error or the death of the process: torchrun restarts the run
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from utils.distributed.collectives import RetryableExit, all_gather_rows
from utils.distributed.process_group import (
    LAUNCHER_FOLDER_ENV,
    World,
    init_distributed,
    is_one_machine,
    launcher_folder,
    restart_count,
)
from utils.errors import RetryableError, UserError, print_error
from utils.filesystem import write_text_atomic

_EXIT_CODE_FILE = "exit-code"
_CHECKPOINT_REQUEST_FILE = "checkpoint-request"


def restartable(main: Callable[[], None]) -> Callable[[], None]:
    """Wraps the main function of an entry script, so that bad input and requested stops end a run for good.

    Does nothing without a launcher.
    """

    def run() -> None:
        if read_exit_code(launcher_folder()):
            if not is_one_machine():  # the others wait in training_session
                with init_distributed("cpu") as world:  # gloo: it meets the gloo backend of ranks with GPUs too
                    exit_if_ended(world)
            sys.exit(0)
        with record_exit_code():
            main()

    return run


@contextmanager
def record_exit_code() -> Iterator[None]:
    """Tells the launcher the exit code of a block that ends the run for good. Prints a UserError and exits with 2."""
    try:
        yield
    except (RetryableError, RetryableExit):
        raise
    except UserError as error:
        _write_exit_code(2)
        print_error(error)
        raise SystemExit(2) from None
    except SystemExit as end:
        if isinstance(end.code, int) and end.code:
            _write_exit_code(end.code)
        raise


def exit_if_ended(world: World) -> None:
    """Exits with 0 if the run has ended for good on any machine, and tells the launcher of this one. Collective.

    Call it before any other collective.
    """
    code = int(all_gather_rows(np.array([read_exit_code(launcher_folder())]), world).max())
    if code:
        _write_exit_code(code)
        sys.exit(0)


def read_exit_code(folder: Path | None) -> int:
    """Returns the exit code with which the run of this launcher's folder has ended for good, or 0."""
    file = folder / _EXIT_CODE_FILE if folder else None
    return int(file.read_text()) if file and file.is_file() else 0


def _write_exit_code(code: int) -> None:
    if folder := launcher_folder():
        with suppress(OSError):  # a full disk: torchrun restarts the run, which ends in the same way
            write_text_atomic(folder / _EXIT_CODE_FILE, str(code))


def request_checkpoint(folder: Path) -> None:
    """Requests a checkpoint from the run of this launcher's folder."""
    with suppress(FileNotFoundError):  # the run has ended
        (folder / _CHECKPOINT_REQUEST_FILE).touch()


def pop_checkpoint_request() -> bool:
    """Returns whether the launcher has requested a checkpoint. Only one rank of this machine receives the request."""
    if folder := launcher_folder():
        with suppress(FileNotFoundError):
            (folder / _CHECKPOINT_REQUEST_FILE).unlink()
            return True
    return False


def run_ids(world: World) -> list[str]:
    """Returns the IDs of the run, one per launcher, which stay the same through all restarts. Collective.

    Returns an empty list without torchrun.
    """
    run_id = os.environ.get(LAUNCHER_FOLDER_ENV) or os.environ.get("TORCHELASTIC_RUN_ID", "")
    return sorted({str(name) for name in all_gather_rows(np.array([run_id]), world) if name})


def was_restarted(world: World) -> bool:
    """Returns whether torchrun has restarted processes on any machine. Collective: each machine counts its own."""
    return bool(all_gather_rows(np.array([restart_count()]), world).any())
