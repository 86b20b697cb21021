"""One run at a time in a folder."""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import RawIOBase
from pathlib import Path

from utils.distributed.collectives import run_on_main
from utils.distributed.process_group import World
from utils.errors import RetryableError, UserError, restart_count
from utils.filesystem import open_no_follow

LOCK_FILE = ".lock"  # stays in the folder; what counts is who holds it, and whoever ends lets it go


@contextmanager
def lock_output_dir(folder: Path, world: World) -> Iterator[None]:
    """Holds the folder for the time of the block. Raises UserError where another run does."""
    held: list[RawIOBase] = []
    run_on_main(world, lambda: held.append(_lock(folder)))
    try:
        yield
    finally:
        for file in held:
            file.close()


def _lock(folder: Path) -> RawIOBase:
    file = os.fdopen(open_no_follow(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_APPEND), "a+b", buffering=0)
    try:
        # Of this process alone: loader workers do not inherit it, and hold nothing when this one is killed.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.seek(0)
        by = file.read(200).decode(errors="replace").strip()
        file.close()
        # A network disk may hold for a while what a process that died held.
        kind = RetryableError if restart_count() else UserError
        raise kind(
            f"config output: another run is at work in {folder} ({by}); wait for its end, or name another folder"
        ) from None
    except OSError:
        return file  # a file system without locks
    with suppress(OSError):  # a full disk: what is written is for people alone
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    return file
