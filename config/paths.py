"""Where relative paths count from.

One rule for every command: what is typed on the command line counts from the person's working folder, what stands in
a config file (and every default) from the project's folder. "~" is the home folder in both.
"""

import os
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]


def from_working_folder(text: str) -> str:
    """Returns a path typed on the command line, "~" expanded."""
    return os.path.expanduser(text)  # noqa: PTH111 (pathlib would drop a trailing slash, and make "" a ".")


def typed_path(text: str) -> Path:
    """Returns a path typed as an option, "~" expanded; a type for argparse."""
    return Path(from_working_folder(text))


def from_project(text: str) -> str:
    """Returns a path of a config file as the process can open it: relative where the working folder is the project."""
    text = from_working_folder(text)
    if not text or os.path.isabs(text) or in_project():  # noqa: PTH117
        return text
    return str(PROJECT / text)


def in_project() -> bool:
    """Returns whether the working folder is the project's."""
    return Path.cwd() == PROJECT


def to_project(text: str) -> str:
    """Returns a path as a config file would have it: relative inside the project, else absolute. Empty stays empty."""
    if not text:
        return text
    path = Path(text).absolute()
    return str(path.relative_to(PROJECT)) if path.is_relative_to(PROJECT) else str(path)
