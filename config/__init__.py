"""Configs: `load_config` reads a config file over the defaults of config/base.py, applies overrides and checks it."""

from collections.abc import Iterable

from config.base import Config
from config.command import CommandParser, add_config_arguments, collect_overrides
from config.fields import ConfigError
from config.folders import ensure_output_folder, require_data
from config.load import load_config, shipped_configs
from config.paths import expand_typed_path, path_argument, resolve_config_path
from config.saved import save_config
from config.usage import warn_unused_fields

__all__ = [
    "CommandParser",
    "Config",
    "ConfigError",
    "add_config_arguments",
    "collect_overrides",
    "ensure_output_folder",
    "expand_typed_path",
    "load_config",
    "output_override",
    "parse_command",
    "path_argument",
    "require_data",
    "resolve_config_path",
    "save_config",
    "shipped_configs",
    "warn_unused_fields",
]


def parse_command(
    description: str, switches: Iterable[str] = (), distillation: bool = False, resume: bool = False
) -> Config:
    """Parses the command line [--config FILE] [field=value …] and returns the checked config.

    Raises ConfigError.

    Args:
        description: of the command, for --help.
        switches: boolean fields that an option sets to True, as --multi-step sets multi_step.
        distillation: whether to check the fields of knowledge distillation.
        resume: whether the command has the option --resume.
    """
    parser = CommandParser(description)
    add_config_arguments(parser, switches, resume)
    args = parser.parse()
    return load_config(args.config, collect_overrides(args), distillation)


def output_override(overrides: Iterable[str]) -> str | None:
    """Returns the folder in the last override "output=FOLDER", or None. For commands that read the output of a run."""
    parts = (override.removeprefix("config.").partition("=") for override in overrides)
    typed = [text for name, _, text in parts if name == "output"]
    return typed[-1] if typed else None
