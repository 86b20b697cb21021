"""A lock on the output folder, so that only one run at a time writes to it."""

from collections.abc import Iterator
from contextlib import contextmanager
from io import RawIOBase
from pathlib import Path

from utils.distributed.collectives import run_on_main
from utils.distributed.process_group import World, restart_count
from utils.errors import RetryableError, UserError
from utils.filesystem import lock_folder


@contextmanager
def lock_output_dir(folder: Path, world: World) -> Iterator[None]:
    """Locks the folder for the duration of the block. Collective: rank 0 holds the lock.

    Raises UserError if another run holds it, a RetryableError after a restart.
    """
    lock_files: list[RawIOBase] = []
    # A network disk may keep the lock of a process that died for a while.
    kind = RetryableError if restart_count() else UserError
    run_on_main(world, lambda: lock_files.append(lock_folder(folder, kind)))
    try:
        yield
    finally:
        for file in lock_files:
            file.close()
