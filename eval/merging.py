"""Results that are kept in a file: those of earlier commands beside new ones, each of its own folder of weights.

A file is {checkpoint: {set: entry}}. Checkpoints of the first folder of weights are named by their steps; those of any
other have the folder's name behind the step, as in "295672 (PocketNetS128-1f0a3c)". An entry's "weights" is the folder:
"." for the one that the file is in, a path relative to the project where it is inside, else an absolute path.
"""

import itertools
import json
import os
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from config import from_project
from config.paths import to_project
from eval.folders import run_name
from utils.checkpoints.weights import backbone_name
from utils.errors import UserError
from utils.filesystem import open_regular_file, sha256, write_text_atomic
from utils.logs.run_log import log

Entries = dict[str, dict[str, Any]]

_WITH_FOLDER = re.compile(r"(.*) \(([^()]*-[0-9a-f]{6})\)")


def split_key(key: str) -> tuple[str, str]:
    """A checkpoint's name, and that of its folder where the key has it; else empty."""
    match = _WITH_FOLDER.fullmatch(key)
    return (match[1], match[2]) if match else (key, "")


def keys_of(names: Iterable[str], owners: Mapping[str, Path], weights: Path) -> dict[str, str]:
    """The keys of checkpoints in the folder `weights`, by their names. owners: the folder of each key of the file."""
    plain = {folder for key, folder in owners.items() if not split_key(key)[1]}
    suffix = "" if plain <= {weights.resolve()} else f" ({re.sub('[()]', '_', run_name(weights))})"
    return {name: name + suffix for name in names}


def owners_of(path: Path, weights: Path) -> dict[str, Path]:
    """The folder of weights of each checkpoint in a file. Earlier versions kept none: then it is `weights`."""
    return {key: _owner(sets, path.parent, weights) for key, sets in read_entries(path).items()}


def _owner(sets: dict[str, Any], folder: Path, weights: Path) -> Path:
    named = [entry.get("weights") for entry in sets.values() if isinstance(entry, dict)]
    for name in named:
        if isinstance(name, str) and "\0" not in name:
            return (folder if name == "." else Path(from_project(name))).resolve()
    return weights.resolve()


def merge(path: Path, new: Entries, weights: Path, digests: Mapping[str, str]) -> Entries:
    """The entries of a file with new ones, of checkpoints in the folder `weights`, in place of those of the same
    checkpoint and set, in the order of steps.

    Old ones whose checkpoint, or whose set by its digest, is no longer what they were made of are marked as outdated;
    where their folder of weights is not there, they stay as they are.
    """
    owners = owners_of(path, weights)
    checkpoints = {folder: _checkpoints(folder) for folder in set(owners.values())}
    merged: Entries = {}
    for key, sets in read_entries(path).items():
        files, step = checkpoints[owners[key]], split_key(key)[0]
        merged[key] = {
            name: entry
            if files is None or not isinstance(entry, dict)
            else mark(entry, files.get(step), digests.get(name))
            for name, entry in sets.items()
        }
    where = "." if weights.resolve() == path.parent.resolve() else to_project(str(weights.resolve()))
    for step, key in keys_of(new, owners, weights).items():
        merged[key] = merged.get(key, {}) | {name: {"weights": where} | entry for name, entry in new[step].items()}
    return dict(sorted(merged.items(), key=lambda item: by_step(item[0])))


def _checkpoints(folder: Path) -> dict[str, Path] | None:
    """The files of a folder by the names of their checkpoints; None where it is not there."""
    try:
        return {backbone_name(path): path for path in sorted(folder.iterdir()) if path.is_file()}
    except OSError:
        return None


def by_step(key: str) -> tuple[str, bool, int, str]:
    """The key that sorts checkpoints: by folder, in it steps as numbers, then other names."""
    name, folder = split_key(key)
    is_step = name.isdecimal() and len(name) < 20
    return folder, not is_step, int(name) if is_step else 0, name


def mark(entry: dict[str, Any], path: Path | None, digest: str | None) -> dict[str, Any]:
    """The entry with "outdated" and the reason where the checkpoint's file or the pairs (by their digest; None: not
    known) are no longer what it was made of."""
    if path is None:
        reason = "the checkpoint's file is gone"
    elif "sha256" not in entry:
        reason = "of an earlier version, which kept no checksums"
    elif (found := _sha256_of(path)) is None:
        reason = "the checkpoint's file cannot be read"
    elif entry["sha256"] != found:
        reason = "the checkpoint's file has changed since"
    elif digest is not None and entry.get("pairs_sha256") != digest:
        reason = "the pairs have changed since"
    else:
        reason = ""
    plain = {name: value for name, value in entry.items() if name != "outdated"}
    return plain | {"outdated": reason} if reason else plain


def _sha256_of(path: Path) -> str | None:
    try:
        found = path.stat()
        return _sha256_once(path, found.st_mtime_ns, found.st_size)
    except OSError:
        return None


@lru_cache(maxsize=1024)
def _sha256_once(path: Path, _mtime_ns: int, _size: int) -> str:
    return sha256(path)


def read_entries(path: Path) -> Entries:
    """The entries of a file; none where it is missing or damaged."""
    return _read(path) or {}


def replace_entries(path: Path, entries: Entries) -> None:
    """Write the file with these entries. One that is damaged is set aside first, with a warning. Raises OSError."""
    if _read(path) is None:
        numbered = (path.with_name(f"{path.name}.damaged{f'-{n}' if n > 1 else ''}") for n in itertools.count(1))
        aside = next(name for name in numbered if not os.path.lexists(name))
        path.rename(aside)
        log.warning(f"{path}: damaged, or not of results; it is now {aside.name}, and new results begin a new file")
    write_text_atomic(path, json.dumps(entries, indent=2) + "\n")


def _read(path: Path) -> Entries | None:
    """None where the file is damaged. A missing one holds nothing, nor does a pipe or a folder of its name."""
    try:
        with open_regular_file(path) as file:
            found = json.load(file)
    except (FileNotFoundError, UserError):
        return {}
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and all(isinstance(sets, dict) for sets in found.values()) else None
