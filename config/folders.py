"""Checks the folders that a config names."""

from pathlib import Path

from config.base import Config
from config.fields import ConfigError
from utils.errors import shorten
from utils.filesystem import ensure_writable_folder, path_exists


def require_data(config: Config) -> None:
    """Raises ConfigError if the data folder, config.rec, does not exist."""
    folder = Path(config.rec)
    if not path_exists(folder.is_dir):
        if path_exists(folder.exists):
            raise ConfigError(f"config rec: {config.rec!r} is a file", fix=f"name its folder: rec={folder.parent}")
        raise ConfigError(
            f"config rec: no folder {shorten(config.rec)}",
            fix="put train.rec, train.idx, property and the *.bin sets there, or name another with rec=FOLDER "
            "(data/README.md)",
        )


def ensure_output_folder(config: Config, field: str) -> Path:
    """Creates the folder in a config field if it is missing, and returns it.

    Raises ConfigError if no file can be written in it.
    """
    try:
        return ensure_writable_folder(Path(getattr(config, field)))
    except OSError as error:
        raise ConfigError(
            f"config {field}: cannot write in {shorten(getattr(config, field))} ({error.strerror})",
            fix=f"name another with {field}=FOLDER",
        ) from None
