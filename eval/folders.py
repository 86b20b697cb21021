"""Finds the folder of checkpoints, whether a run wrote it, and the folder for results."""

import hashlib
from pathlib import Path

from config import ConfigError, ensure_output_folder, resolve_config_path
from config.base import Config
from config.load import CONFIG_FOLDER
from config.saved import find_saved_config, load_saved_config
from utils.errors import one_line

_RUN_FILES = ("checkpoint.pth", "training.log", "search.log")  # files that a run of this project writes


def weights_folder(output: str) -> Path:
    """Returns the folder of checkpoints: config.output itself, or the parent if it names a file."""
    path = Path(output)
    return path if path.is_dir() else path.parent


def is_run_folder(folder: Path) -> bool:
    """Returns whether a run of this project wrote the folder, so that results may be written to it as well.

    False for a copied, downloaded or shared folder: its config.json names another output folder, or none.
    """
    saved = find_saved_config(folder)
    try:
        output = load_saved_config(saved).get("output") if saved else None
    except ConfigError:
        output = None
    if isinstance(output, str):
        return Path(resolve_config_path(output)).resolve() == folder.resolve()
    return any((folder / name).is_file() for name in _RUN_FILES)


def unique_folder_name(folder: Path) -> str:
    """Returns the folder's name and a six-digit hash of its path, which separates folders of the same name."""
    resolved = folder.resolve()
    return f"{one_line(resolved.name)}-{hashlib.sha256(bytes(resolved)).hexdigest()[:6]}"


def default_result_folder(weights: Path) -> Path:
    """Returns the folder for results of checkpoints in a folder that no run of this project wrote."""
    return CONFIG_FOLDER.parent / "output" / "eval" / unique_folder_name(weights)


def result_folder(config: Config) -> Path:
    """Makes and returns the folder for results, and sets config.test_output to it.

    It is config.test_output if set, else the checkpoints' folder if a run of this project wrote it, else a folder in
    output/eval. Raises ConfigError if it cannot be written.
    """
    if not config.test_output:
        weights = weights_folder(config.output)
        config.test_output = str(weights if is_run_folder(weights) else default_result_folder(weights))
    return ensure_output_folder(config, "test_output")
