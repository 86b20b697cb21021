"""Runs Python scripts in forks of a process that has loaded the large libraries: two seconds less for each.

As a script it is that process: a line of JSON asks for a run, a line answers with its exit code.
"""

import contextlib
import importlib
import json
import multiprocessing.process
import os
import runpy
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LIBRARIES = ["torch", "tensorboard.summary.writer.record_writer", "cv2", "scipy.stats", "matplotlib.pyplot"]
TIMEOUT = 120  # seconds
_server: list[subprocess.Popen[str]] = []


def run(command: list[str], folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """What subprocess.run gives for `python SCRIPT …` or `python -m MODULE …` in the folder."""
    if not _server:
        ours = [sys.executable, __file__]
        alone = os.environ | {"OMP_NUM_THREADS": "1"}  # a fork has the threads of the libraries that it finds
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        _server.append(subprocess.Popen(ours, **pipes, env=alone, text=True, cwd="/"))
    server = _server[0]
    assert server.stdin and server.stdout
    with tempfile.TemporaryDirectory() as said:
        job = {"command": command, "folder": str(folder), "environment": environment, "said": said}
        server.stdin.write(json.dumps(job) + "\n")
        server.stdin.flush()
        code = int(server.stdout.readline())
        stdout, stderr = (Path(said, name).read_text(encoding="utf-8", errors="replace") for name in ("1", "2"))
    return subprocess.CompletedProcess(command, code, stdout, stderr)


def serve() -> None:
    """Runs what is asked for, one after another, until nobody asks."""
    for library in LIBRARIES:
        importlib.import_module(library)
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        job = json.loads(line)
        if not (child := os.fork()):
            answers.close()
            become(job)
            return
        print(wait_for(child), file=answers, flush=True)


def wait_for(child: int) -> int:
    """The exit code of the process, or the number of the signal that ended it, below zero, as subprocess has it."""
    end = time.monotonic() + TIMEOUT
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            os.kill(child, 9)
            end += TIMEOUT
        time.sleep(0.01)


def become(job: dict) -> None:
    """Makes this process the one that the command would have started."""
    for number, name in ((1, "1"), (2, "2")):
        file = os.open(Path(job["said"], name), os.O_WRONLY | os.O_CREAT)
        os.dup2(file, number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(job["folder"])
    multiprocessing.process.ORIGINAL_DIR = job["folder"]  # type: ignore[attr-defined]  # where spawned ones find the script
    os.environ.clear()
    os.environ.update(job["environment"])
    first, *rest = job["command"]
    with contextlib.suppress(ValueError):
        sys.path.remove(str(Path(__file__).parent))
    if first == "-m":
        sys.path.insert(0, str(Path.cwd()))
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, str(Path(first).resolve().parent))
        sys.argv = [first, *rest]
        runpy.run_path(first, run_name="__main__")


if __name__ == "__main__":
    serve()
