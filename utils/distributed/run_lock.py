"""A lock on the output folder, so that only one run at a time writes to it."""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import RawIOBase
from pathlib import Path

from utils.distributed.collectives import run_on_main
from utils.distributed.process_group import World, restart_count
from utils.errors import RetryableError, UserError
from utils.filesystem import open_no_follow

LOCK_FILE = ".lock"  # the file stays in the folder; the lock on it is released when its process ends


@contextmanager
def lock_output_dir(folder: Path, world: World) -> Iterator[None]:
    """Locks the folder for the duration of the block. Collective: rank 0 holds the lock.

    Raises UserError if another run holds it, a RetryableError after a restart.
    """
    lock_files: list[RawIOBase] = []
    run_on_main(world, lambda: lock_files.append(_lock(folder)))
    try:
        yield
    finally:
        for file in lock_files:
            file.close()


def _lock(folder: Path) -> RawIOBase:
    """Locks the folder's lock file and returns it open; unlocked if the file system has no locks."""
    file = os.fdopen(open_no_follow(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_APPEND), "a+b", buffering=0)
    try:
        # lockf, not flock: loader workers do not inherit the lock and cannot keep it if this process is killed.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.seek(0)
        holder = file.read(200).decode(errors="replace").strip()
        file.close()
        # A network disk may keep the lock of a process that died for a while.
        kind = RetryableError if restart_count() else UserError
        raise kind(
            f"config output: another run is using {folder} ({holder})", fix="wait until it ends, or name another folder"
        ) from None
    except OSError:
        return file  # a file system without locks
    with suppress(OSError):  # a full disk: the content is only a note for people
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    return file
