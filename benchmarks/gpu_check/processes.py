"""Processes with a time limit, which are ended together with all that they have started."""

import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def start_group(
    command: Sequence[str], environment: Mapping[str, str], output: IO[str] | int
) -> Iterator[subprocess.Popen[str]]:
    """Starts a command in the project's folder, in a process group of its own, and ends the group after the block.

    output: file or descriptor for its output and its errors, or subprocess.PIPE.
    """
    process = subprocess.Popen(
        list(command),
        cwd=ROOT,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        end_group(process)


def end_group(process: subprocess.Popen[str]) -> None:
    """Kills a process, its group and its descendants, also those in other groups, as torchrun's are. Waits for it."""
    left = descendants(process.pid) if process.poll() is None else []  # else its number may be another's
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for pid in left:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def descendants(pid: int) -> list[int]:
    """Returns the ids of all running processes that a process has started, directly or not. [] where /proc is none."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            # After the name in brackets come the state and the id of the parent.
            parent = int(stat.read_text(errors="replace").rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(stat.parent.name))
    found = [pid]
    for each in found:
        found += children.get(each, [])
    return found[1:]
