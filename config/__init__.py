"""Configs: `load_config` reads a config file over the defaults of config/base.py, applies overrides and checks it.

A config file is Python code that sets fields on an EasyDict named `config`, as in the published code. Load only
config files that you trust. The config.json that a run saves (config/saved.py) is data, and reading it runs no code.
"""

import copy
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from easydict import EasyDict

from backbones.names import NET_NAMES
from config.base import config as defaults
from config.command import CommandParser, add_config_arguments, collect_overrides
from config.fields import (
    DEFAULTS,
    DISTILLATION,
    PATHS,
    PUBLISHED_UNUSED,
    ConfigError,
    check_combinations,
    check_genotype,
    check_type,
    check_value,
    parse_value,
    similar_field,
    unknown_field,
)
from config.paths import expand_typed_path, path_argument, resolve_config_path
from config.saved import find_saved_config, load_saved_config, read_config_file, save_config
from config.usage import warn_unused_fields
from utils.errors import shorten
from utils.filesystem import ensure_writable_folder, exists_as_non_folder, path_exists

__all__ = [
    "NET_NAMES",
    "CommandParser",
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
]  # fmt: skip

CONFIG_FOLDER = Path(__file__).resolve().parent
# Exceptions from the code of a config file that become a ConfigError.
_CONFIG_FILE_ERRORS = (
    ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, NameError, OSError, RuntimeError,
    SyntaxError, TypeError, ValueError,
)  # fmt: skip


def load_config(
    path: str | Path | None = None,
    overrides: Iterable[str] = (),
    distills: bool = False,
    saved_in: str | Path | None = None,
) -> EasyDict:
    """Loads and checks a config. It has every field of config/base.py.

    The config has two attributes in addition to its fields: `set_by` is a dict from each field that was set to its
    source, "file" or "command line", and `without_effect` lists the names in the file that are not fields.

    Args:
        path: a config file, a config.json, or a folder with a config.json. None: the config.json of `saved_in` if it
            has one, otherwise config/config.py.
        overrides: texts "field=value". The value is read in the type of the field's default.
        distills: whether to check the fields of knowledge distillation.
        saved_in: a checkpoint or its folder. Its config.json is used if `path` is None.

    Raises:
        ConfigError: the file is missing, or a field is unknown, of the wrong type or out of range.
    """
    file = _find(path, saved_in)
    config = load_saved_config(file) if file.suffix == ".json" else _run(file)
    without_effect = [name for name in config if name not in DEFAULTS]
    for name in without_effect:
        if similar_field(name) and name not in PUBLISHED_UNUSED:
            raise unknown_field(name, config[name])
        EasyDict.pop(config, name)  # not config.pop: a field may be named pop
    set_by = dict.fromkeys(config, "file")
    for name, default in DEFAULTS.items():
        if name not in config:
            config[name] = copy.deepcopy(default)
    for name in DEFAULTS:
        if distills or name not in DISTILLATION:
            config[name] = check_type(name, config[name])
        if name in PATHS and isinstance(config[name], str):
            config[name] = resolve_config_path(config[name])
    if file.suffix == ".json":
        config.output = str(file.parent)  # the folder of a run may have been moved or copied
        config.test_output = ""  # a copied folder must not decide where results are written
    overridden = _apply(config, overrides, distills)
    set_by |= dict.fromkeys(overridden, "command line")
    _check(config, distills)
    has_own_schedule = config.lr_func is not None
    if not has_own_schedule:
        set_by.pop("lr_func", None)
        config.lr_func = _step_schedule(config)
    _check_schedule(config, has_own_schedule, overridden)
    if "rec" in overridden:
        require_data(config)
    for name, value in (("set_by", set_by), ("without_effect", without_effect)):
        object.__setattr__(config, name, value)  # an attribute, not a field
    return config


def parse_command(
    description: str, switches: Iterable[str] = (), distills: bool = False, resume: bool = False
) -> EasyDict:
    """Parses the command line [--config FILE] [field=value …] and returns the checked config.

    Raises ConfigError.

    Args:
        description: of the command, for --help.
        switches: boolean fields that an option sets to True, as --multi-step sets multi_step.
        distills: whether to check the fields of knowledge distillation.
        resume: whether the command has the option --resume.
    """
    parser = CommandParser(description)
    add_config_arguments(parser, switches, resume)
    args = parser.parse()
    return load_config(args.config, collect_overrides(args), distills)


def output_override(overrides: Iterable[str]) -> str | None:
    """Returns the folder in the last override "output=FOLDER", or None. For commands that read the output of a run."""
    parts = (override.removeprefix("config.").partition("=") for override in overrides)
    typed = [text for name, _, text in parts if name == "output"]
    return typed[-1] if typed else None


def require_data(config: EasyDict) -> None:
    """Raises ConfigError if the data folder, config.rec, does not exist."""
    folder = Path(config.rec)
    if not path_exists(folder.is_dir):
        if path_exists(folder.exists):
            raise ConfigError(f"config rec: {config.rec!r} is a file", fix=f"name its folder: rec={folder.parent}")
        raise ConfigError(
            f"config rec: no folder {shorten(config.rec)}",
            fix="put train.rec, train.idx, property and the *.bin sets "
            "there, or name another with rec=FOLDER (data/README.md)",
        )


def ensure_output_folder(config: EasyDict, field: str) -> Path:
    """Creates the folder in a config field if it is missing, and returns it.

    Raises ConfigError if no file can be written in it.
    """
    try:
        return ensure_writable_folder(Path(config[field]))
    except OSError as error:
        raise ConfigError(
            f"config {field}: cannot write in {shorten(config[field])} ({error.strerror})",
            fix=f"name another with {field}=FOLDER",
        ) from None


def shipped_configs() -> list[Path]:
    """Returns the paths of the shipped config files, config/config_*.py, sorted."""
    return sorted(CONFIG_FOLDER.glob("config_*.py"))


def _find(path: str | Path | None, saved_in: str | Path | None) -> Path:
    """Returns the path of the config file, for the arguments of `load_config`. Raises ConfigError if there is none."""
    if path is not None:
        path = Path(expand_typed_path(str(path)))
        if path_exists(path.is_dir) and (saved := find_saved_config(path)):
            return saved
        if not exists_as_non_folder(path):
            raise ConfigError(
                f"config: no file {shorten(str(path))}", fix=f"there are {', '.join(map(str, shipped_configs()))}"
            )
        return path
    if saved_in is not None and (saved := find_saved_config(expand_typed_path(str(saved_in)))):
        return saved
    default = CONFIG_FOLDER / "config.py"
    if not default.is_file():
        names = ", ".join(file.name for file in shipped_configs())
        raise ConfigError(
            "config: config/config.py is missing",
            fix=f"choose one of {names}, for example: cp config/config_PocketNetS128.py config/config.py",
        )
    return default


def _run(path: Path) -> EasyDict:
    """Runs a Python config file and returns its `config`. Raises ConfigError if it fails or defines none."""
    source = read_config_file(path)
    namespace: dict[str, Any] = {"__name__": path.stem, "__file__": str(path)}
    try:
        # Not imported: __pycache__ may be stale for a copied file with the same size and time.
        # Compiled from bytes, so that Python handles a byte-order mark or another encoding as an import does.
        exec(compile(source, str(path), "exec"), namespace)
    except _CONFIG_FILE_ERRORS as error:
        raise ConfigError(f"config {path}: {type(error).__name__}: {error}") from error
    config = namespace.get("config")
    if not isinstance(config, EasyDict):
        raise ConfigError(f"config {path}: should define config = EasyDict() and set its fields")
    if config is defaults:
        raise ConfigError(f"config {path}: should define its own config = EasyDict(), not change config/base.py's")
    return config


def _apply(config: EasyDict, overrides: Iterable[str], distills: bool) -> set[str]:
    """Sets the fields of "field=value" texts and returns their names. Raises ConfigError."""
    names = set()
    for override in overrides:
        name, equals, text = override.partition("=")
        name = name.removeprefix("config.")
        if not equals:
            raise ConfigError(f"config: {shorten(override)} should read field=value")
        if name not in DEFAULTS:
            raise unknown_field(name, text)
        value = parse_value(name, text)
        if distills or name not in DISTILLATION:
            value = check_type(name, value)
        if name in PATHS:
            value = expand_typed_path(value)
        config[name] = value
        names.add(name)
    return names


def _check(config: EasyDict, distills: bool) -> None:
    """Raises ConfigError for values out of range, and for fields that do not fit each other."""
    for name in DEFAULTS:
        if distills or name not in DISTILLATION:
            check_value(name, config[name])
    check_combinations(config)
    if distills and config.teacher_genotype:
        check_genotype(config, "teacher_genotype")


def _check_schedule(config: EasyDict, has_own_schedule: bool, overridden: set[str]) -> None:
    """Checks an lr_func that the config file defines.

    Raises ConfigError if it does not return a factor for every epoch, or if overrides of lr_steps or warmup_epoch
    would have no effect.
    """
    if not has_own_schedule:
        return
    for name in sorted(overridden & {"lr_steps", "warmup_epoch"}):
        raise ConfigError(
            f"config {name}: {config[name]!r} is not used, because this config file defines lr_func",
            fix="change it there",
        )
    for epoch in range(config.num_epoch):
        try:
            factor = config.lr_func(epoch)
        except _CONFIG_FILE_ERRORS as error:
            raise ConfigError(f"config lr_func: fails for epoch {epoch}: {type(error).__name__}: {error}") from error
        if not isinstance(factor, int | float) or not 0 <= factor < math.inf:
            raise ConfigError(f"config lr_func: should return a factor for epoch {epoch}, returns {shorten(factor)}")


def _step_schedule(config: EasyDict) -> Callable[[int], float]:
    """Returns the published learning-rate factor by epoch: optional warm-up, then a tenth at each of lr_steps."""

    def lr_factor(epoch: int) -> float:
        if epoch < config.warmup_epoch:
            return ((epoch + 1) / 5) ** 2
        return 0.1 ** sum(epoch >= step for step in config.lr_steps)

    return lr_factor
