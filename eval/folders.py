"""Which folder holds checkpoints, whether a run wrote it, and where results come."""

import hashlib
from pathlib import Path

from easydict import EasyDict

from config import FOLDER, ConfigError, from_project, make_folder
from config.saved import read_saved, saved_config
from utils.errors import one_line

_RUN_FILES = ("checkpoint.pth", "training.log", "search.log", "config.json")  # what a run of this project leaves


def weights_folder(output: str) -> Path:
    """The folder of checkpoints that config.output names, or that the file it names lies in."""
    path = Path(output)
    return path if path.is_dir() else path.parent


def is_run(folder: Path) -> bool:
    """Whether the folder is the output of a run here, so that results may come there, too. A folder that was copied or
    downloaded is not: its config.json names another."""
    saved = saved_config(folder)
    try:
        output = read_saved(saved).get("output") if saved else None
    except ConfigError:
        output = None
    if isinstance(output, str):
        return Path(from_project(output)).resolve() == folder.resolve()
    return any((folder / name).is_file() for name in _RUN_FILES)


def run_name(folder: Path) -> str:
    """The folder's name, and what tells it apart from others of the same name."""
    whole = folder.resolve()
    return f"{one_line(whole.name)}-{hashlib.sha256(bytes(whole)).hexdigest()[:6]}"


def result_folder(config: EasyDict) -> Path:
    """config.test_output, else the checkpoints' folder if a run of this project wrote it, else one in output/eval.

    Raises ConfigError where it cannot be written.
    """
    if not config.test_output:
        weights = weights_folder(config.output)
        config.test_output = str(weights if is_run(weights) else FOLDER.parent / "output" / "eval" / run_name(weights))
    return make_folder(config, "test_output")
