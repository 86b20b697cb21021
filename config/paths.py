"""Base folders of relative paths.

Paths on the command line are relative to the working folder. Paths in a config file, and defaults, are relative to the
project's folder. "~" is the home folder in both.
"""

import os
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]


def expand_typed_path(text: str) -> str:
    """Returns a path from the command line with "~" expanded, otherwise unchanged."""
    return os.path.expanduser(text)  # noqa: PTH111 (pathlib would drop a trailing slash, and make "" a ".")


def path_argument(text: str) -> Path:
    """Returns a path from the command line with "~" expanded. Serves as a type for argparse."""
    return Path(expand_typed_path(text))


def resolve_config_path(text: str) -> str:
    """Returns a path from a config file so that this process can open it.

    A relative path becomes absolute, unless the working folder is the project's. An empty text stays empty.
    """
    text = expand_typed_path(text)
    if not text or os.path.isabs(text) or in_project():  # noqa: PTH117
        return text
    return str(PROJECT / text)


def in_project() -> bool:
    """Returns whether the working folder is the project's."""
    return Path.cwd() == PROJECT


def relative_to_project(text: str) -> str:
    """Returns a path as for a config file: relative inside the project, otherwise absolute. Empty stays empty."""
    if not text:
        return text
    path = Path(text).absolute()
    return str(path.relative_to(PROJECT)) if path.is_relative_to(PROJECT) else str(path)
