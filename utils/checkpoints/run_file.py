"""checkpoint.pth: all that a run needs to go on as if it had never stopped."""

import re
import shutil
from pathlib import Path
from typing import Any

from utils.checkpoints.state_dicts import first_not_finite
from utils.checkpoints.weights import CheckpointError, as_checkpoint_error, load_safe, save_atomic
from utils.filesystem import path_exists
from utils.logs.run_log import log

CHECKPOINT_FILE = "checkpoint.pth"
VERSION = 2  # of the file
KEYS = {
    "way", "run", "position", "images", "data", "config", "backbone", "header", "momentum", "scaler", "bad_steps",
    "task", "ranks",
}  # fmt: skip
START_OVER_HINT = "--resume 0 trains anew and moves the files there to a folder old-N"


def write_checkpoint(folder: Path, keep: int, state: dict[str, Any]) -> None:
    """Writes checkpoint.{step}.pth, makes checkpoint.pth another name of it, and keeps the last `keep` of them."""
    path = folder / f"checkpoint.{state['position']['step']}.pth"
    save_atomic(path, state)
    temporary = folder / f".{CHECKPOINT_FILE}.link.tmp"
    temporary.unlink(missing_ok=True)
    try:
        temporary.hardlink_to(path)
    except OSError:  # a file system without links
        shutil.copyfile(path, temporary)
    temporary.replace(folder / CHECKPOINT_FILE)
    for other in [other for other in kept_checkpoints(folder) if other != path][keep - 1 :]:
        other.unlink(missing_ok=True)


def read_checkpoint(folder: Path) -> dict[str, Any] | None:
    """checkpoint.pth, or the newest of the kept ones that is whole and finite; None where there has been none. The
    others are told and passed over; raises CheckpointError where all are such."""
    damaged = None
    for path in (folder / CHECKPOINT_FILE, *kept_checkpoints(folder)):
        if not path_exists(path.exists):
            continue
        try:
            return _read(path)
        except CheckpointError as error:
            log.warning(str(error))
            damaged = error
    if damaged:
        raise CheckpointError(f"{damaged}; no other is there: {START_OVER_HINT}")
    return None


def saved_task_type(folder: Path) -> str | None:
    """Returns the name of the task that the run in a folder trains by; None where no checkpoint says so."""
    try:
        state = read_checkpoint(folder)
    except CheckpointError:
        return None
    return None if state is None else str(state["way"])


def _read(path: Path) -> dict[str, Any]:
    state = load_safe(path)
    with as_checkpoint_error(path):
        if not isinstance(state, dict) or state.get("version") != VERSION or not state.keys() >= KEYS:
            raise CheckpointError(f"{path}: is no checkpoint of a run, or of another version of the project")
        if name := first_not_finite_entry(state):
            raise CheckpointError(f"{path}: {name} is not finite")
    return state


def first_not_finite_entry(state: dict[str, Any]) -> str | None:
    """The name of the first tensor or number of a run's state that is not finite."""
    return first_not_finite({part: content for part, content in state.items() if part != "config"})


def kept_checkpoints(folder: Path) -> list[Path]:
    """checkpoint.{step}.pth, the newest first."""
    found = {
        int(match[1]): path
        for path in folder.glob("checkpoint.*.pth")
        if (match := re.fullmatch(r"checkpoint\.(\d+)\.pth", path.name))
    }
    return [found[step] for step in sorted(found, reverse=True)]
