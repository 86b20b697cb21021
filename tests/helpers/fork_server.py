"""A Python interpreter for tests that starts fast: it runs each program in a fork of a server with torch imported.

Run as a script, this module is the server. fork_client.py is the program that a test starts in place of Python.
"""

import atexit
import contextlib
import functools
import gc
import importlib
import json
import multiprocessing.process
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import NoReturn

LIBRARIES = [
    "torch._dynamo", "torch.distributed.run", "torch.utils.data", "cv2", "easydict", "scipy.stats",
    "matplotlib.pyplot", "tensorboard.summary.writer.record_writer", "tqdm",
]  # fmt: skip
TIMEOUT = 300  # seconds
CLIENT = Path(__file__).with_name("fork_client.py")


@functools.cache
def forked_python() -> Path:
    """Starts the server, which ends with this process. Returns an executable that takes the arguments of Python.

    It knows `-u`, `-c CODE`, `-m MODULE` and `SCRIPT`, and the variables PYTHONPATH and PYTHONSAFEPATH.
    """
    folder = Path(tempfile.mkdtemp(prefix="forked-python-"))
    executable = folder / "python"
    executable.write_text(f'#!/bin/sh\nexec "{sys.executable}" -IS "{CLIENT}" "{folder / "socket"}" "$@"\n')
    executable.chmod(0o755)
    single_threaded = os.environ | {"OMP_NUM_THREADS": "1"}  # threads of libraries do not survive a fork
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    command = [sys.executable, "-P", __file__, folder / "socket"]
    server = subprocess.Popen(command, **pipes, env=single_threaded, cwd="/")
    assert server.stdout and server.stdout.readline() == b"ready\n"
    atexit.register(shutil.rmtree, folder)
    atexit.register(server.wait)  # its processor time counts as that of the tests
    atexit.register(server.terminate)
    return executable


def serve(address: str) -> None:
    """Runs each program that a client names in a fork, until standard input ends."""
    for library in LIBRARIES:
        importlib.import_module(library)
    gc.freeze()  # the collector of a fork would copy the libraries' memory
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        print("ready", flush=True)
        while listener in select.select([listener, sys.stdin], [], [])[0]:
            connection, _ = listener.accept()
            if not os.fork():
                listener.close()
                supervise(connection)
                return
            connection.close()
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass


def supervise(connection: socket.socket) -> None:
    """Runs a client's program and sends back its process id and its exit code.

    Kills the program after TIMEOUT, or if the client ends first.
    """
    _, files, _, _ = socket.recv_fds(connection, 1, 3)
    program = json.loads(connection.makefile().readline())
    if not (child := os.fork()):
        connection.close()
        for number, file in enumerate(files):
            os.dup2(file, number)
            os.close(file)
        run_program(**program)
        return
    connection.sendall(f"{child}\n".encode())
    ended = os.pidfd_open(child)
    if ended not in select.select([ended, connection], [], [], TIMEOUT)[0]:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    with contextlib.suppress(BrokenPipeError):  # the client was killed
        connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


def run_program(arguments: list[str], folder: str, environment: dict[str, str]) -> None:
    """Turns this fork into the process that `python ARGUMENTS` would be."""
    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    multiprocessing.process.ORIGINAL_DIR = folder  # type: ignore[attr-defined]  # where spawned processes find the script
    if arguments[0] == "-u":
        arguments = arguments[1:]
        sys.stdout.reconfigure(write_through=True)  # type: ignore[union-attr]
    kind = arguments[0] if arguments[0] in ("-c", "-m") else ""
    target, *rest = arguments[1:] if kind else arguments
    script_folder = folder if kind else str(Path(target).resolve().parent)
    search_path = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:0] = search_path if environment.get("PYTHONSAFEPATH") else [script_folder, *search_path]
    sys.argv = [kind or target, *rest]
    try:
        if kind == "-c":
            exec(compile(target, "<string>", "exec"), {"__name__": "__main__"})
        elif kind == "-m":
            runpy.run_module(target, run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(target, run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, int):
            exit_quickly(end.code)
        raise


def exit_quickly(code: int) -> NoReturn:
    """Ends the process as Python does, except that it leaves out the clearing of modules, which takes 0.2 s here."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    serve(sys.argv[1])
