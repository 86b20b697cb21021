"""Runs a script in several processes with torchrun, and exits with the exit code of the run.

    python -m utils.distributed.launch [OPTION …] SCRIPT …

`restart.py` describes what passes between the launcher, torchrun and the processes.
"""

import logging
import os
import signal
import sys
import tempfile
from pathlib import Path

from utils.distributed.process_group import LAUNCHER_FOLDER_ENV, LOOPBACK_ENVIRONMENT, count_gpus
from utils.distributed.restart import read_exit_code, request_checkpoint
from utils.distributed.signals import CHECKPOINT_SIGNALS, ignore_checkpoint_signals, is_ignored
from utils.errors import UserError, print_error


def launch(arguments: list[str]) -> int:
    """Runs torchrun and returns the exit code of the process that ended the run, or 128 + N for signal N.

    arguments: torchrun's. If the first is --standalone, the rendezvous uses files that only this user can access, and
    processes listen on the loopback address only. torchrun's own --standalone would listen on every address.
    """
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    if "--max-restarts" not in arguments or arguments[arguments.index("--max-restarts") + 1] == "0":
        logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # or it would report a UserError too
    # Otherwise the launcher listens too, and restarted processes wait for the addresses of processes that have ended.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    handled = (s for s in ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT") if not is_ignored(getattr(signal, s)))
    os.environ["PET_SIGNALS_TO_HANDLE"] = ",".join(handled)  # torchrun's --signals-to-handle, which older versions lack
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ[LAUNCHER_FOLDER_ENV] = name
        for number in CHECKPOINT_SIGNALS:
            if not is_ignored(number):  # passed on as a file: the signal could end processes that are starting
                signal.signal(number, lambda *_: request_checkpoint(folder))
        if arguments[0] == "--standalone":
            arguments = [*_loopback_rendezvous(folder / "rendezvous"), *arguments[1:]]
        try:
            run.main(arguments)
        except SignalException as error:
            return 128 + error.sigval
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            if failure.exitcode < 0:
                print_error(describe_death(rank, -failure.exitcode))
                return 128 - failure.exitcode
            return failure.exitcode
        return read_exit_code(folder)


def describe_death(rank: int, number: int) -> UserError:
    """Returns the error for a process that a signal has ended, with what usually sends it."""
    senders = {
        signal.SIGABRT: ", as by NCCL where a GPU waits for another process for twice the config's timeout",
        signal.SIGKILL: ", as when memory runs out",
    }
    sender = senders.get(signal.Signals(number), "")
    return UserError(
        f"process {rank} was ended by {signal.Signals(number).name} (exit code {-number}){sender}",
        fix="lines above may say more; the same command resumes from the last checkpoint",
    )


def _loopback_rendezvous(file: Path) -> list[str]:
    """Returns torchrun options for a rendezvous in a file, and makes the processes exchange data over the loopback."""
    os.environ.update(LOOPBACK_ENVIRONMENT)
    # Each heartbeat makes the file longer, and a single machine does not need one.
    options = ["--rdzv-backend", "c10d", "--rdzv-endpoint", str(file), "--rdzv-conf"]
    return [*options, "store_type=file,keep_alive_interval=3600", "--rdzv-id", "pocketnet", "--local-addr", "127.0.0.1"]


def launch_on_all_gpus(device: str) -> None:
    """Runs this command again with torchrun, one process on each GPU, and exits. Returns if one process is enough.

    device: as config.device. The environment variable NPROC sets another number of processes, as for train.sh. Raises
    UserError if it is not a number from 1 to 1024.
    """
    nproc = os.environ.get("NPROC") or str(count_gpus(device) or 1)
    if not nproc.isdecimal() or not 1 <= int(nproc) <= 1024:
        raise UserError(f"NPROC: should be a whole number from 1, is {nproc!r}")
    if "RANK" in os.environ or nproc == "1":
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // int(nproc))))
    raise SystemExit(launch(["--standalone", "--nproc-per-node", nproc, *sys.argv]))


if __name__ == "__main__":
    ignore_checkpoint_signals()
    sys.exit(launch(sys.argv[1:]))
