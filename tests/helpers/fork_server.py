"""Runs Python scripts in forks of a server process that has imported the large libraries, which saves two seconds each.

Run as a script, this module is the server: it reads a job as a line of JSON and writes the exit code as a line.
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


def run_script(command: list[str], folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Runs `python SCRIPT …` or `python -m MODULE …` in the folder, with the result of subprocess.run."""
    if not _server:
        server_command = [sys.executable, __file__]
        single_threaded = os.environ | {"OMP_NUM_THREADS": "1"}  # threads of libraries do not survive a fork
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        _server.append(subprocess.Popen(server_command, **pipes, env=single_threaded, text=True, cwd="/"))
    server = _server[0]
    assert server.stdin and server.stdout
    with tempfile.TemporaryDirectory() as output:
        job = {"command": command, "folder": str(folder), "environment": environment, "output": output}
        server.stdin.write(json.dumps(job) + "\n")
        server.stdin.flush()
        code = int(server.stdout.readline())
        stdout, stderr = (Path(output, name).read_text(encoding="utf-8", errors="replace") for name in ("1", "2"))
    return subprocess.CompletedProcess(command, code, stdout, stderr)


def serve() -> None:
    """Runs jobs one after another until standard input ends."""
    for library in LIBRARIES:
        importlib.import_module(library)
    replies = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        job = json.loads(line)
        if not (child := os.fork()):
            replies.close()
            run_job(job)
            return
        print(wait_for(child), file=replies, flush=True)


def wait_for(child: int) -> int:
    """Waits for a process and kills it after the timeout. Returns its exit code, or minus the number of its signal."""
    deadline = time.monotonic() + TIMEOUT
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(child, 9)
            deadline += TIMEOUT
        time.sleep(0.01)


def run_job(job: dict) -> None:
    """Turns this fork into the process that the job's command would have started, and runs its script."""
    for number, name in ((1, "1"), (2, "2")):
        file = os.open(Path(job["output"], name), os.O_WRONLY | os.O_CREAT)
        os.dup2(file, number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(job["folder"])
    multiprocessing.process.ORIGINAL_DIR = job["folder"]  # type: ignore[attr-defined]  # where spawned processes find the script
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
