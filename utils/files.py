"""What is asked of files and folders that a person named."""

import errno
import hashlib
import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np

from utils.errors import UserError

_CHUNK = 1 << 20  # bytes
_SAMPLES = 256  # chunks
_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
    stat.S_IFSOCK: "a socket",
}


def is_there(check: Callable[[], bool]) -> bool:
    """What a path's is_file or is_dir says; False where it may not look, or no path can be that long."""
    try:
        return check()
    except OSError:
        return False


def make_writable(folder: Path) -> Path:
    """The folder, made where it is missing. Raises OSError where no file can be written in it."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        return folder


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Opens a regular file for reading in binary. Never waits for the writer of a pipe. Raises UserError where the path
    is a pipe, a device, a folder or a socket, and OSError where it cannot be opened."""
    kind = stat.S_IFMT(Path(path).stat().st_mode)  # before it is opened: a device may react to that
    if kind == stat.S_IFREG:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        kind = stat.S_IFMT(os.fstat(descriptor).st_mode)  # the path may name another file by now
        if kind == stat.S_IFREG:
            os.set_blocking(descriptor, True)
            return os.fdopen(descriptor, "rb")
        os.close(descriptor)
    raise UserError(
        f"{os.fspath(path)}: is not a regular file ({_KINDS.get(kind, 'of another kind')}); name a file, or copy its "
        "content into one"
    )


def replace_text(path: Path, text: str) -> None:
    """Writes a file, whole or not at all: a temporary one, then a rename. Raises OSError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def reserve(file: int, size: int) -> None:
    """Gives the file its size and, where the system can, its place on the disk: a full one is told now, as an error,
    and not in the middle of the run as a bus error. What is in the file stays."""
    try:
        os.posix_fallocate(file, 0, size)
    except (AttributeError, OSError) as error:  # macOS has no such call, some network file systems do not serve it
        if isinstance(error, OSError) and error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise
        os.ftruncate(file, size)


def sha256(*files: Path) -> str:
    """SHA-256 of the bytes of files, one file after another."""
    whole = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                whole.update(chunk)
    return whole.hexdigest()


def fingerprint(small: Path, large: Path) -> str:
    """SHA-256 of the one file, the size of the other and its bytes; of one over 256 MiB, chunks all over it."""
    whole = hashlib.sha256(small.read_bytes())
    size = large.stat().st_size
    whole.update(str(size).encode())
    starts = np.linspace(0, max(0, size - _CHUNK), _SAMPLES).astype(np.int64) if size > _SAMPLES * _CHUNK else None
    with large.open("rb") as file:
        for start in range(0, size, _CHUNK) if starts is None else starts.tolist():
            file.seek(start)
            whole.update(file.read(_CHUNK))
    return whole.hexdigest()
