"""Commands that run while a test watches them."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil

from tests.helpers.paths import ROOT
from utils.checkpoints.run_file import read_checkpoint

SMALL_RUN = [
    "channel=4", "n_layers=4", "embedding_size=16", "batch_size=4", "workers=1", "save_initial=0", "eval_step=0",
    "log_step=1", "save_step=2",
]  # fmt: skip


def run_arguments(data, folder) -> list[str]:
    """Returns the arguments of a short training that writes to the folder only."""
    paths = [f"rec={data}", f"output={folder}", f"log_dir={folder}/logs"]
    return ["--config", "config/config_demo.py", *SMALL_RUN, *paths]


class RunningCommand:
    """A running command in the project's folder."""

    def __init__(self, *command: object, **environment: str) -> None:
        plain = {key: value for key, value in os.environ.items() if key not in ("NPROC", "NNODES", "PYTHONPATH")}
        ours = {"PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        self.output = ""
        self.process = subprocess.Popen(
            [str(part) for part in command],
            cwd=ROOT,
            env=plain | ours | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # Some shells start what runs behind them with Ctrl-C ignored, and that is inherited.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )

    def until(self, pattern: str) -> bool:
        """Reads the output up to a line with the pattern. Returns False if the process ends without one."""
        assert self.process.stdout
        for line in self.process.stdout:
            self.output += line
            if re.search(pattern, line):
                return True
        return False

    def end(self) -> int:
        """Waits for the end and returns the exit code."""
        assert self.process.stdout
        self.output += self.process.stdout.read()
        return self.process.wait(timeout=100)


def child_pids(pid: int) -> list[int]:
    """Returns the ids of the children of a process."""
    return [child.pid for child in psutil.Process(pid).children()]


def find_child(pid: int, word: str) -> psutil.Process:
    """Returns the only child of a process whose command line holds the word."""
    (found,) = (child for child in psutil.Process(pid).children() if word in " ".join(child.cmdline()))
    return found


def signal_all(pid: int, number: int) -> None:
    """Sends a signal to a process and to all of its descendants that still run."""
    process = psutil.Process(pid)
    for member in (process, *process.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            member.send_signal(number)


def checkpoint_step(folder: Path) -> int:
    state = read_checkpoint(folder)
    assert state
    return state["position"]["step"]
