"""Merges new results with those of earlier commands in one file, for checkpoints of any number of folders.

A file is {key: {set: entry}}. The key of a checkpoint in the first folder of weights is its step; in any other folder,
the step and the folder's name, as in "295672 (PocketNetS128-1f0a3c)". An entry's "weights" is the folder: "." for the
folder of the file itself, a path relative to the project for a folder inside it, else an absolute path.
"""

import itertools
import json
import os
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from config import resolve_config_path
from config.paths import relative_to_project
from eval.folders import unique_folder_name
from utils.checkpoints.weights import backbone_name
from utils.errors import UserError
from utils.filesystem import open_regular_file, sha256, write_text_atomic
from utils.logs.logger import log

Entries = dict[str, dict[str, Any]]

_WITH_FOLDER = re.compile(r"(.*) \(([^()]*-[0-9a-f]{6})\)")


def split_key(key: str) -> tuple[str, str]:
    """Returns the checkpoint's name and its folder's name, which is empty if the key has none."""
    match = _WITH_FOLDER.fullmatch(key)
    return (match[1], match[2]) if match else (key, "")


def result_keys(names: Iterable[str], folders: Mapping[str, Path], weights: Path) -> dict[str, str]:
    """Returns by name the keys of checkpoints in the folder `weights`. folders: the folder of each key in the file."""
    plain = {folder for key, folder in folders.items() if not split_key(key)[1]}
    suffix = "" if plain <= {weights.resolve()} else f" ({re.sub('[()]', '_', unique_folder_name(weights))})"
    return {name: name + suffix for name in names}


def folders_by_key(path: Path, weights: Path) -> dict[str, Path]:
    """Returns by key the folder of weights of each checkpoint in a file.

    `weights` for entries of earlier versions, which did not store the folder.
    """
    return _folders_of(read_entries(path), path.parent, weights)


def _folders_of(entries: Entries, folder: Path, weights: Path) -> dict[str, Path]:
    return {key: _weights_folder(sets, folder, weights) for key, sets in entries.items()}


def _weights_folder(sets: dict[str, Any], folder: Path, weights: Path) -> Path:
    names = [entry.get("weights") for entry in sets.values() if isinstance(entry, dict)]
    for name in names:
        if isinstance(name, str) and "\0" not in name:
            return (folder if name == "." else Path(resolve_config_path(name))).resolve()
    return weights.resolve()


def merge_entries(path: Path, new: Entries, weights: Path, digests: Mapping[str, str]) -> Entries:
    """Returns the entries of a file and the new ones, sorted by step.

    New entries, of checkpoints in the folder `weights`, replace those of the same checkpoint and set. Old entries are
    marked as outdated if their checkpoint, or the digest of their set, has changed. If their folder of weights does not
    exist, they stay as they are.
    """
    old = read_entries(path)
    folders = _folders_of(old, path.parent, weights)
    checkpoints = {folder: _checkpoints(folder) for folder in set(folders.values())}
    merged: Entries = {}
    for key, sets in old.items():
        files, step = checkpoints[folders[key]], split_key(key)[0]
        merged[key] = {
            name: entry
            if files is None or not isinstance(entry, dict)
            else mark_outdated(entry, files.get(step), digests.get(name))
            for name, entry in sets.items()
        }
    stored = "." if weights.resolve() == path.parent.resolve() else relative_to_project(str(weights.resolve()))
    for step, key in result_keys(new, folders, weights).items():
        merged[key] = merged.get(key, {}) | {name: {"weights": stored} | entry for name, entry in new[step].items()}
    return dict(sorted(merged.items(), key=lambda item: checkpoint_sort_key(item[0])))


def _checkpoints(folder: Path) -> dict[str, Path] | None:
    """Returns the folder's files by checkpoint name, or None if the folder cannot be read."""
    try:
        return {backbone_name(path): path for path in sorted(folder.iterdir()) if path.is_file()}
    except OSError:
        return None


def checkpoint_sort_key(key: str) -> tuple[str, bool, int, str]:
    """Sort key for checkpoints: by folder, then steps as numbers, then other names."""
    name, folder = split_key(key)
    is_step = name.isdecimal() and len(name) < 20
    return folder, not is_step, int(name) if is_step else 0, name


def mark_outdated(entry: dict[str, Any], path: Path | None, digest: str | None) -> dict[str, Any]:
    """Returns the entry, with the reason as "outdated" if the checkpoint's file or the pairs have changed.

    path: the checkpoint's file (None: missing). digest: of the pairs (None: unknown, not compared).
    """
    if path is None:
        reason = "the checkpoint's file is gone"
    elif "sha256" not in entry:
        reason = "written by an earlier version, without checksums"
    elif (checksum := _sha256_or_none(path)) is None:
        reason = "the checkpoint's file cannot be read"
    elif entry["sha256"] != checksum:
        reason = "the checkpoint's file has changed since"
    elif digest is not None and entry.get("pairs_sha256") != digest:
        reason = "the pairs have changed since"
    else:
        reason = ""
    plain = {name: value for name, value in entry.items() if name != "outdated"}
    return plain | {"outdated": reason} if reason else plain


def _sha256_or_none(path: Path) -> str | None:
    try:
        status = path.stat()
        return _cached_sha256(path, status.st_mtime_ns, status.st_size)
    except OSError:
        return None


@lru_cache(maxsize=1024)
def _cached_sha256(path: Path, _mtime_ns: int, _size: int) -> str:
    return sha256(path)


def read_entries(path: Path) -> Entries:
    """Returns the entries of a file, empty if it is missing or damaged."""
    return _load_entries(path) or {}


def write_entries(path: Path, entries: Entries) -> None:
    """Writes the entries to the file. Renames a damaged file first, with a warning. Raises OSError."""
    if _load_entries(path) is None:
        numbered = (path.with_name(f"{path.name}.damaged{f'-{n}' if n > 1 else ''}") for n in itertools.count(1))
        renamed = next(name for name in numbered if not os.path.lexists(name))
        path.rename(renamed)
        log.warning(f"{path}: damaged, or not a results file; renamed to {renamed.name}, and a new file is started")
    write_text_atomic(path, json.dumps(entries, indent=2) + "\n")


def _load_entries(path: Path) -> Entries | None:
    """Returns the entries of a file, or None if it is damaged. A missing file, a pipe or a folder has no entries."""
    try:
        with open_regular_file(path) as file:
            entries = json.load(file)
    except (FileNotFoundError, UserError):
        return {}
    except (OSError, ValueError, RecursionError):
        return None
    is_valid = isinstance(entries, dict) and all(isinstance(sets, dict) for sets in entries.values())
    return entries if is_valid else None
