"""What is asked of files and folders that a person named."""

import errno
import hashlib
import itertools
import os
import secrets
import stat
import tempfile
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from utils.errors import UserError, one_line

_CHUNK = 1 << 20  # bytes
_SAMPLES = 256  # chunks
_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
    stat.S_IFSOCK: "a socket",
}


def path_exists(check: Callable[[], bool]) -> bool:
    """What a path's is_file or is_dir says; False where it may not look, or no path can be that long."""
    try:
        return check()
    except OSError:
        return False


def is_no_folder(path: Path) -> bool:
    """Whether something other than a folder is there. A pipe or a device counts: whoever opens it says what it is."""
    return path_exists(path.exists) and not path_exists(path.is_dir)


def make_writable(folder: Path) -> Path:
    """The folder, made where it is missing. Raises OSError where no file can be written in it."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        return folder


def open_regular_file(path: str | os.PathLike[str]) -> BinaryIO:
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


def open_no_follow(path: Path, flags: int) -> int:
    """Opens a regular file that is written and returns its descriptor; with O_CREAT it is made where it is missing.

    A symbolic link is not followed: a folder from a stranger could name any file by it. Raises UserError for a link, a
    folder, a pipe or a device, OSError otherwise.
    """
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP and path.is_symlink():
            raise UserError(f"{path}: is a symbolic link, which is not written through; remove it") from None
        if error.errno not in (errno.ENXIO, errno.EISDIR):
            raise
        descriptor = -1
    if descriptor < 0 or not stat.S_ISREG(os.fstat(descriptor).st_mode):
        if descriptor >= 0:
            os.close(descriptor)
        raise UserError(f"{path}: should be a regular file; remove it")
    return descriptor


def write_atomic(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Writes a file by a temporary file in the same folder and a rename.

    A symbolic link at `path` is replaced and its target not touched; where writing fails, what stood there stays.
    Raises OSError.
    """
    temporary = path.with_name(f".{path.name[:40]}.{secrets.token_hex(8)}.tmp")
    # O_EXCL: a file or link that somebody put there under this name is never opened.
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        with os.fdopen(descriptor, "wb") as file:
            write(file)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text_atomic(path: Path, text: str) -> None:
    """Writes a text file as UTF-8 with `write_atomic`. Raises OSError."""
    content = text.encode("utf-8", "surrogateescape")  # file names may hold bytes that are no UTF-8
    write_atomic(path, lambda file: file.write(content))


def save_figure(path: Path, figure: Any, dpi: int) -> None:
    """Writes a matplotlib figure with `write_atomic`, in the format of the path's suffix, PNG without one.

    Raises OSError, and ValueError for a format that matplotlib does not write.
    """
    write_atomic(path, partial(figure.savefig, format=path.suffix[1:] or "png", dpi=dpi))


def write_files(writers: Mapping[Path, Callable[[Path], object]], advice: str) -> None:
    """Writes each file by calling its writer with the path; one that fails does not keep the others from being written.

    Raises a single UserError at the end that names the files which could not be written; `advice` ends it.
    """
    failed: dict[Path, str] = {}
    for path, write in writers.items():
        try:
            write(path)
        except OSError as error:
            failed[path] = error.strerror or str(error)
    if failed:
        first = next(iter(failed))
        names = one_line(", ".join(path.name for path in failed))
        raise UserError(
            f"{first.parent}: {names} could not be written ({failed[first]}) and stay as they were; {advice}"
        )


def archive(folder: Path, files: Iterable[Path]) -> Path:
    """Moves files of a folder to a new folder old-N in it, and returns that. Raises OSError."""
    old = next(path for n in itertools.count(1) if not os.path.lexists(path := folder / f"old-{n}"))
    old.mkdir()
    for path in files:
        path.rename(old / path.name)
    return old


def preallocate(file: int, size: int) -> None:
    """Gives an open file its size and, where the system can, its place on the disk. What is in the file stays.

    A full disk is then an OSError now, and not a bus error later in the memory that maps the file.
    """
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
