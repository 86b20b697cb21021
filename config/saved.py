"""config.json: the config of a run, saved in its output folder, from which later commands know the network.

It holds only data: reading it runs no code.
"""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from config.base import Config
from config.fields import ConfigError, is_path
from config.paths import relative_to_project
from utils.errors import UserError
from utils.filesystem import open_regular_file, path_exists, write_text_atomic

CONFIG_FILE = "config.json"
_NOT_SAVED = ("resume", "global_step", "device")  # how one start of the run begins, on its machine
log = logging.getLogger("pocketnet")  # the logger of utils.logs.logger


def save_config(config: Config) -> None:
    """Writes the config to {output}/config.json, with paths as in a config file.

    Leaves out resume, global_step and device, which apply to one start of the run only. Warns if the file cannot be
    written; the run continues without it.
    """
    fields: dict[str, Any] = {
        name: relative_to_project(value) if is_path(name, value) else value
        for name, value in config.to_dict().items()
        if name not in _NOT_SAVED
    }
    fields["lr_func"] = None
    if config.lr_func is not None:  # its values; otherwise lr_steps define the schedule
        fields["lr_func"] = [config.lr_func(epoch) for epoch in range(config.num_epoch)]
    path = Path(config.output, CONFIG_FILE)
    try:
        write_text_atomic(path, json.dumps(fields, indent=1, default=str) + "\n")
    except OSError as error:
        log.warning(f"{path} could not be written ({error.strerror}): later commands need --config; training continues")


def find_saved_config(folder: str | Path) -> Path | None:
    """Returns the path of the config.json in a folder, or in the folder of a checkpoint. None if there is none."""
    path = Path(folder)
    path = (path if path_exists(path.is_dir) else path.parent) / CONFIG_FILE
    return path if path_exists(path.exists) else None


def read_config_file(path: Path) -> bytes:
    """Returns the bytes of a file. Raises ConfigError if it cannot be read, or is a pipe, a device or a folder."""
    try:
        with open_regular_file(path) as file:
            return file.read()
    except OSError as error:
        raise ConfigError(f"config {path}: {error.strerror}") from None
    except UserError as error:
        raise ConfigError(f"config {error.problem}", error.fix) from None


def load_saved_config(path: Path) -> dict[str, Any]:
    """Returns the fields of a config.json, not yet checked. Raises ConfigError if it is not a JSON object of fields."""
    try:
        fields = json.loads(read_config_file(path))
    except ConfigError:
        raise
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"config {path}: is not JSON ({error!s:.60})", fix="name a config with --config FILE"
        ) from None
    if not isinstance(fields, dict):
        raise ConfigError(f"config {path}: should be a JSON object of fields", fix="name a config with --config FILE")
    factors = fields.pop("lr_func", None)
    values = {name: value for name, value in fields.items() if name not in _NOT_SAVED}
    if factors is not None:
        values["lr_func"] = _from_values(path, factors)
    return values


def _from_values(path: Path, factors: Any) -> Callable[[int], float]:
    """Returns a learning-rate schedule from its factor for each epoch. Later epochs use the last factor."""
    if not isinstance(factors, list) or not factors or not all(isinstance(f, int | float) for f in factors):
        raise ConfigError(f"config {path}: lr_func should be a list of numbers")

    def lr_factor(epoch: int) -> float:
        return factors[min(epoch, len(factors) - 1)]

    return lr_factor
