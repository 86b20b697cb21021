"""What is asked of files and folders that a person named."""

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

_CHUNK = 1 << 20


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


def replace_text(path: Path, text: str) -> None:
    """Writes a file, whole or not at all: a temporary one, then a rename. Raises OSError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def sha256(*files: Path) -> str:
    """SHA-256 of the bytes of files, one file after another."""
    whole = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                whole.update(chunk)
    return whole.hexdigest()
