"""Processes started by torchrun, and the exit code of what ended them: python -m utils.launch [OPTION …] SCRIPT …

torchrun starts processes again whatever they ended by. What no new start mends, as bad input or a wish to stop, they
leave in a file; started again they find it and end well, which torchrun takes for the end of the run.
"""

import logging
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch

from utils.distributed import LOOPBACK, World, gather_rows, on_main
from utils.errors import ENDED, PassingError, RetryableExit, UserError, restarts, tell
from utils.files import replace_text
from utils.signals import SAVING, drop_requests, is_ignored
from utils.stopping import SAVE

NOTE = ".ended"  # in the run's folder: exit code, launcher


def launch(arguments: list[str]) -> int:
    """Runs torchrun and returns the exit code of the process that ended the run; 128 + its number for a signal.

    arguments: torchrun's. After a first --standalone, all processes meet in files that only this user can reach, and
    listen on no address but the loopback's; torchrun's own --standalone would listen on every address.
    """
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    if "--max-restarts" not in arguments or arguments[arguments.index("--max-restarts") + 1] == "0":
        logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # it would report on a UserError too
    # Else the launcher listens as well, and processes that are started again wait for the addresses of the dead.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    handled = (s for s in ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT") if not is_ignored(getattr(signal, s)))
    os.environ["PET_SIGNALS_TO_HANDLE"] = ",".join(handled)  # torchrun's --signals-to-handle; an old one has none
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        told = folder / "code"
        os.environ[ENDED] = str(told)
        for number in SAVING:
            if not is_ignored(number):  # the processes look for the file; the signal itself could end those that start
                signal.signal(number, lambda *_: _ask_for_checkpoint(folder))
        if arguments[0] == "--standalone":
            arguments = [*_meet_on_loopback(folder / "rendezvous"), *arguments[1:]]
        try:
            run.main(arguments)
        except SignalException as error:
            return 128 + error.sigval
        except ChildFailedError as error:
            _, failure = error.get_first_failure()
            if failure.exitcode < 0:
                print(error, file=sys.stderr)
                return 128 - failure.exitcode
            return failure.exitcode
        return int(told.read_text()) if told.is_file() else 0


def _ask_for_checkpoint(folder: Path) -> None:
    with suppress(FileNotFoundError):  # the run has ended
        (folder / SAVE).touch()


def _meet_on_loopback(file: Path) -> list[str]:
    """torchrun's options by which the launcher meets in the file; its processes exchange data by the loopback."""
    os.environ.update(LOOPBACK)
    # A heartbeat, which a single machine does not need, makes the file longer each time.
    meet = ["--rdzv-backend", "c10d", "--rdzv-endpoint", str(file), "--rdzv-conf"]
    return [*meet, "store_type=file,keep_alive_interval=3600", "--rdzv-id", "pocketnet", "--local-addr", "127.0.0.1"]


def spread_over_gpus() -> None:
    """Starts this command again with a process on each GPU of the machine, by torchrun; goes on where there is one.

    NPROC in the environment says another number of processes, as for train.sh.
    """
    told = os.environ.get("NPROC") or str(torch.cuda.device_count() or 1)
    if not told.isdecimal() or not 1 <= int(told) <= 1024:
        raise UserError(f"NPROC: should be a whole number from 1, is {told!r}")
    if "RANK" in os.environ or told == "1":
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // int(told))))
    raise SystemExit(launch(["--standalone", "--nproc-per-node", told, *sys.argv]))


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


if __name__ == "__main__":
    drop_requests()
    sys.exit(launch(sys.argv[1:]))
