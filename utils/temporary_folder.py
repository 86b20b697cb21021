"""Folders for unfinished work, which a later process removes if this one is killed."""

import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from utils.errors import UserError
from utils.filesystem import LOCK_FILE, lock_folder


@contextmanager
def temporary_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """Context manager around a new folder in `parent`, which is removed afterwards with all that it holds.

    First removes the folders of this prefix that killed processes have left there. Raises OSError.
    """
    _remove_stale(parent, prefix)
    # An error of the cleanup must not hide that the work is done.
    with (
        tempfile.TemporaryDirectory(prefix=prefix, dir=parent, ignore_cleanup_errors=True) as name,
        lock_folder(Path(name)),
    ):
        yield Path(name)


def _remove_stale(parent: Path, prefix: str) -> None:
    """Removes the folders of this prefix whose lock no process holds.

    Leaves those without a note in their lock file, which `lock_folder` writes once it holds the lock: their process
    has just started, or their file system has no locks.
    """
    random = re.compile(re.escape(prefix) + "[a-z0-9_]{8}")  # a name that tempfile makes
    for folder in sorted(path for path in parent.iterdir() if random.fullmatch(path.name)):
        with suppress(OSError, UserError):  # of another user, or in use
            if folder.is_symlink() or not (folder / LOCK_FILE).lstat().st_size:
                continue
            with lock_folder(folder):
                shutil.rmtree(folder)
