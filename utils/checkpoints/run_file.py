"""Writes and reads checkpoint.pth, which holds everything a run needs to resume exactly."""

import re
import shutil
from pathlib import Path
from typing import Any

from utils.checkpoints.state_dicts import first_nonfinite
from utils.checkpoints.weights import CheckpointError, as_checkpoint_error, load_safe, save_atomic
from utils.filesystem import path_exists
from utils.logs.logger import log

CHECKPOINT_FILE = "checkpoint.pth"
FORMAT_VERSION = 3  # of the file; files of version 2, with the momentum of SGD, are read too
REQUIRED_KEYS = {
    "way", "run", "position", "images", "data", "config", "backbone", "header", "optimizer", "scaler", "bad_steps",
    "task", "ranks",
}  # fmt: skip
START_OVER_HINT = "--resume 0 starts over and moves the files there to a folder old-N"


def write_checkpoint(folder: Path, keep: int, state: dict[str, Any]) -> None:
    """Writes checkpoint.{step}.pth, links checkpoint.pth to it, and deletes all but the last `keep` of them. Atomic.

    Raises OSError, and RuntimeError from torch's writer.
    """
    path = folder / f"checkpoint.{state['position']['step']}.pth"
    save_atomic(path, state)
    temporary = folder / f".{CHECKPOINT_FILE}.link.tmp"
    temporary.unlink(missing_ok=True)
    try:
        temporary.hardlink_to(path)
    except OSError:  # a file system without hard links
        shutil.copyfile(path, temporary)
    temporary.replace(folder / CHECKPOINT_FILE)
    for other in [other for other in list_checkpoints(folder) if other != path][keep - 1 :]:
        other.unlink(missing_ok=True)


def read_checkpoint(folder: Path) -> dict[str, Any] | None:
    """Returns the state in checkpoint.pth, or in the newest kept checkpoint that is intact and finite.

    Returns None where the folder has no checkpoint. Damaged ones are logged and skipped; raises CheckpointError where
    all are damaged.
    """
    last_error = None
    for path in (folder / CHECKPOINT_FILE, *list_checkpoints(folder)):
        if not path_exists(path.exists):
            continue
        try:
            return _read(path)
        except CheckpointError as error:
            log.warning(error)
            last_error = error
    if last_error:
        raise CheckpointError(str(last_error), fix=f"there is no other checkpoint: {START_OVER_HINT}")
    return None


def saved_task_type(folder: Path) -> str | None:
    """Returns the task type of the run in a folder, or None where no readable checkpoint has one."""
    try:
        state = read_checkpoint(folder)
    except CheckpointError:
        return None
    return None if state is None else str(state["way"])


def _read(path: Path) -> dict[str, Any]:
    """Reads one checkpoint. Raises CheckpointError where it is damaged, not finite or of another format version."""
    state = load_safe(path)
    with as_checkpoint_error(path):
        if isinstance(state, dict) and state.get("version") == 2:
            momentum = state.pop("momentum")
            state["optimizer"] = {module: {"momentum_buffer": buffers} for module, buffers in momentum.items()}
            state["version"] = FORMAT_VERSION
        if not isinstance(state, dict) or state.get("version") != FORMAT_VERSION or not state.keys() >= REQUIRED_KEYS:
            raise CheckpointError(f"{path}: not the checkpoint of a run, or from another version of the project")
        if name := first_nonfinite_entry(state):
            raise CheckpointError(f"{path}: {name} is not finite")
    return state


def first_nonfinite_entry(state: dict[str, Any]) -> str | None:
    """Returns the name of the first NaN or infinite tensor or number in a run's state, None where all are finite."""
    return first_nonfinite({part: content for part, content in state.items() if part != "config"})


def list_checkpoints(folder: Path) -> list[Path]:
    """Returns the paths of checkpoint.{step}.pth in a folder, the newest first."""
    paths = {
        int(match[1]): path
        for path in folder.glob("checkpoint.*.pth")
        if (match := re.fullmatch(r"checkpoint\.(\d+)\.pth", path.name))
    }
    return [paths[step] for step in sorted(paths, reverse=True)]
