"""The folders that commands write: a shared network, a page."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from utils.errors import UserError
from utils.filesystem import ensure_writable_folder, write_atomic, write_files, write_text_atomic


def is_taken(out: Path) -> bool:
    """Whether there is anything at the path but an empty folder. Raises UserError if it cannot be read."""
    try:
        return out.exists() and (not out.is_dir() or any(out.iterdir()))
    except OSError as error:
        raise _not_writable(out, error) from None


def write_folder(out: Path, files: Mapping[str, str | bytes]) -> None:
    """Writes files, given by their paths in the folder, each atomically. Makes the folder, and those in it.

    Raises UserError, after all others are written, if a file cannot be written.
    """
    for folder in sorted({(out / name).parent for name in files}):
        try:
            ensure_writable_folder(folder)
        except OSError as error:
            raise _not_writable(folder, error) from None
    writers: dict[Path, Callable[[Path], object]] = {
        out / name: partial(_write, content) for name, content in files.items()
    }
    write_files(writers, "free disk space, or name another folder")


def _write(content: str | bytes, path: Path) -> None:
    if isinstance(content, str):
        write_text_atomic(path, content)
    else:
        write_atomic(path, lambda file: file.write(content))


def _not_writable(folder: Path, error: OSError) -> UserError:
    return UserError(f"{folder}: {error.strerror or error}", fix="name another folder")
