"""Safe reading and writing of files and folders named by users: checks, atomic writes, hashes."""

import errno
import fcntl
import hashlib
import itertools
import os
import re
import secrets
import socket
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from io import RawIOBase
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from utils.errors import UserError, one_line

_CHUNK = 1 << 20  # bytes read at once
LOCK_FILE = ".lock"  # the file stays in the folder; the lock on it is released when its process ends
_SAMPLES = 256  # chunks that a fingerprint reads of a large file
_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
    stat.S_IFSOCK: "a socket",
}


def path_exists(check: Callable[[], bool]) -> bool:
    """Calls a path's exists, is_file or is_dir. Returns False if access is denied or the path is too long."""
    try:
        return check()
    except OSError:
        return False


def exists_as_non_folder(path: Path) -> bool:
    """Whether the path exists and is not a folder. Pipes and devices count: opening them raises the precise error."""
    return path_exists(path.exists) and not path_exists(path.is_dir)


def is_in_folder(path: Path, folder: Path) -> bool:
    """Whether a path is the folder itself or an existing file in it, where it lies or where it leads as a link."""
    real = folder.resolve()
    if exists_as_non_folder(path):
        return real in (path.parent.resolve(), path.resolve().parent)
    return path.resolve() == real


def walk_files(
    folder: Path, skip: Iterable[Path] = (), on_error: Callable[[OSError], None] | None = None
) -> Iterator[Path]:
    """Yields the files at any depth below a folder, in no order, without hidden ones such as the ._1.jpg of macOS.

    Follows links to folders, but enters no folder twice.

    skip: folders that are not entered. on_error: is called for a folder that cannot be read, which is then left out;
    None: OSError is raised.
    """
    left, entered = [folder], {path.resolve() for path in skip}
    while left:
        here = left.pop()
        if (real := here.resolve()) in entered:
            continue
        entered.add(real)
        try:
            paths = sorted(here.iterdir())
        except OSError as error:
            if on_error is None:
                raise
            on_error(error)
            continue
        for path in paths:
            if path.name.startswith("."):
                continue
            if path.is_dir():
                left.append(path)
            else:
                yield path


def cache_folder() -> Path:
    """Returns the folder for files of this project that can be made anew: $XDG_CACHE_HOME/pocketnet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "pocketnet"


def ensure_writable_folder(folder: Path) -> Path:
    """Creates the folder if it is missing, and returns it. Raises OSError if no file can be written in it."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        return folder


def open_regular_file(path: str | os.PathLike[str]) -> BinaryIO:
    """Opens a regular file for reading in binary mode. Never blocks on a pipe.

    Raises UserError if the path is a pipe, a device, a folder or a socket, and OSError if it cannot be opened.
    """
    kind = stat.S_IFMT(Path(path).stat().st_mode)  # checked before opening: a device may react to an open
    if kind == stat.S_IFREG:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        kind = stat.S_IFMT(os.fstat(descriptor).st_mode)  # the path may have been replaced since
        if kind == stat.S_IFREG:
            os.set_blocking(descriptor, True)
            return os.fdopen(descriptor, "rb")
        os.close(descriptor)
    raise UserError(
        f"{os.fspath(path)}: is not a regular file ({_KINDS.get(kind, 'of another kind')})",
        fix="name a file, or copy its content into one",
    )


def open_no_follow(path: Path, flags: int) -> int:
    """Opens a regular file for writing and returns its descriptor; O_CREAT in `flags` creates a missing file.

    Does not follow a symbolic link: in a folder from an untrusted source it could point to any file. Raises UserError
    for a link, a folder, a pipe or a device, and OSError if the file cannot be opened.
    """
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP and path.is_symlink():
            raise UserError(f"{path}: is a symbolic link, which is not written through", fix="remove it") from None
        if error.errno not in (errno.ENXIO, errno.EISDIR):
            raise
        descriptor = -1
    if descriptor < 0 or not stat.S_ISREG(os.fstat(descriptor).st_mode):
        if descriptor >= 0:
            os.close(descriptor)
        raise UserError(f"{path}: should be a regular file", fix="remove it")
    return descriptor


def lock_folder(folder: Path, kind: type[UserError] = UserError) -> RawIOBase:
    """Locks the folder's lock file and returns it open; unlocked if the file system has no locks.

    The lock lasts until the file is closed. Raises an error of this kind if another process holds it.
    """
    file = os.fdopen(open_no_follow(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_APPEND), "a+b", buffering=0)
    try:
        # lockf, not flock: processes that this one starts do not inherit the lock and cannot keep it if it is killed.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.seek(0)
        holder = file.read(200).decode(errors="replace").strip()
        file.close()
        raise kind(
            f"another run is using {folder} ({holder})", fix="wait until it ends, or name another folder"
        ) from None
    except OSError:
        return file  # a file system without locks
    with suppress(OSError):  # a full disk: the content is only a note for people
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    return file


def write_atomic(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Writes a file atomically: a temporary file in the same folder, then a rename.

    A symbolic link at `path` is replaced and its target is not touched. If writing fails, the previous file is kept.
    Raises OSError.
    """
    temporary = path.with_name(f".{path.name[:40]}.{secrets.token_hex(8)}.tmp")
    # O_EXCL: never opens an existing file or link of this name.
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        with os.fdopen(descriptor, "wb") as file:
            write(file)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text_atomic(path: Path, text: str) -> None:
    """Writes a text file atomically, as UTF-8. Raises OSError.

    Bytes of file names that are not UTF-8 are written as they are, other surrogates, as JSON may hold, as escapes.
    """
    text = re.sub("[\ud800-\udc7f\udd00-\udfff]", lambda match: ascii(match[0])[1:-1], text)
    content = text.encode("utf-8", "surrogateescape")
    write_atomic(path, lambda file: file.write(content))


def save_figure(path: Path, figure: Any, dpi: int) -> None:
    """Writes a matplotlib figure atomically, in the format of the path's suffix, or as PNG if it has none.

    Raises OSError, and ValueError for a format that matplotlib does not support.
    """
    write_atomic(path, partial(figure.savefig, format=path.suffix[1:] or "png", dpi=dpi))


def write_files(writers: Mapping[Path, Callable[[Path], object]], advice: str) -> None:
    """Writes each file by calling its writer with the path, and continues after a writer that fails.

    Raises one UserError at the end that names all files that could not be written, followed by `advice`.
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
            f"{first.parent}: {names} could not be written ({failed[first]}) and stay as they were", fix=advice
        )


def archive_files(folder: Path, files: Iterable[Path]) -> Path:
    """Moves files of a folder to a new subfolder old-N, N counting up, and returns it. Raises OSError."""
    old = next(path for n in itertools.count(1) if not os.path.lexists(path := folder / f"old-{n}"))
    old.mkdir()
    for path in files:
        path.rename(old / path.name)
    return old


def preallocate(file: int, size: int) -> None:
    """Extends an open file to `size` bytes and reserves the disk space if the system can. Keeps the file's content.

    A full disk then raises OSError here, instead of a bus error later in memory that maps the file.
    """
    try:
        os.posix_fallocate(file, 0, size)
    except (AttributeError, OSError) as error:  # missing on macOS, unsupported by some network file systems
        if isinstance(error, OSError) and error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise
        os.ftruncate(file, size)


def sha256(*files: Path) -> str:
    """Returns the SHA-256, in hexadecimal, of the concatenated bytes of files."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()


def fingerprint(small: Path, large: Path) -> str:
    """Returns a SHA-256, in hexadecimal, over the bytes of `small`, the size of `large` and the bytes of `large`.

    If `large` exceeds 256 MiB, 256 chunks of 1 MiB, evenly spaced over the file, stand for its bytes.
    """
    digest = hashlib.sha256(small.read_bytes())
    size = large.stat().st_size
    digest.update(str(size).encode())
    starts = np.linspace(0, max(0, size - _CHUNK), _SAMPLES).astype(np.int64) if size > _SAMPLES * _CHUNK else None
    with large.open("rb") as file:
        for start in range(0, size, _CHUNK) if starts is None else starts.tolist():
            file.seek(start)
            digest.update(file.read(_CHUNK))
    return digest.hexdigest()
