"""Processes started by torchrun, and the exit code of what ended them.

    python -m utils.distributed.launch [OPTION …] SCRIPT …

torchrun starts processes again whatever they ended by. What no new start mends, as bad input or a wish to stop, they
leave in a file; started again they find it and end well, which torchrun takes for the end of the run.
"""

import logging
import os
import signal
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import torch

from utils.distributed.process_group import LOOPBACK_ENVIRONMENT
from utils.distributed.shutdown import SAVE_FILE
from utils.distributed.signals import CHECKPOINT_SIGNALS, ignore_checkpoint_signals, is_ignored
from utils.errors import EXIT_CODE_FILE, UserError


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
        os.environ[EXIT_CODE_FILE] = str(told)
        for number in CHECKPOINT_SIGNALS:
            if not is_ignored(number):  # the processes look for the file; the signal itself could end those that start
                signal.signal(number, lambda *_: _request_checkpoint(folder))
        if arguments[0] == "--standalone":
            arguments = [*_loopback_rendezvous(folder / "rendezvous"), *arguments[1:]]
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


def _request_checkpoint(folder: Path) -> None:
    with suppress(FileNotFoundError):  # the run has ended
        (folder / SAVE_FILE).touch()


def _loopback_rendezvous(file: Path) -> list[str]:
    """torchrun's options by which the launcher meets in the file; its processes exchange data by the loopback."""
    os.environ.update(LOOPBACK_ENVIRONMENT)
    # A heartbeat, which a single machine does not need, makes the file longer each time.
    meet = ["--rdzv-backend", "c10d", "--rdzv-endpoint", str(file), "--rdzv-conf"]
    return [*meet, "store_type=file,keep_alive_interval=3600", "--rdzv-id", "pocketnet", "--local-addr", "127.0.0.1"]


def launch_on_all_gpus() -> None:
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


if __name__ == "__main__":
    ignore_checkpoint_signals()
    sys.exit(launch(sys.argv[1:]))
