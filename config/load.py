"""Loads and checks a config.

A config file is Python code that sets fields on an EasyDict named `config`, as in the published code. Load only
config files that you trust. The config.json that a run saves (config/saved.py) is data, and reading it runs no code.
"""

import copy
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from easydict import EasyDict

from config.base import RENAMED, Config, rename_field
from config.fields import (
    DEFAULTS,
    DISTILLATION,
    PUBLISHED_UNUSED,
    ConfigError,
    check_combinations,
    check_genotype,
    check_type,
    check_value,
    is_path,
    parse_value,
    similar_field,
    unknown_field,
)
from config.folders import require_data
from config.paths import expand_typed_path, resolve_config_path
from config.saved import find_saved_config, load_saved_config, read_config_file
from utils.errors import shorten
from utils.filesystem import exists_as_non_folder, path_exists

CONFIG_FOLDER = Path(__file__).resolve().parent
# Exceptions from the code of a config file that become a ConfigError.
_CONFIG_FILE_ERRORS = (
    ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, NameError, OSError, RuntimeError,
    SyntaxError, TypeError, ValueError,
)  # fmt: skip


def load_config(
    path: str | Path | None = None,
    overrides: Iterable[str] = (),
    distillation: bool = False,
    saved_in: str | Path | None = None,
) -> Config:
    """Loads and checks a config.

    Args:
        path: a config file, a config.json, or a folder with a config.json. None: the config.json of `saved_in` if it
            has one, otherwise config/config.py.
        overrides: texts "field=value". The value is read in the type of the field's default.
        distillation: whether to check the fields of knowledge distillation.
        saved_in: a checkpoint or its folder. Its config.json is used if `path` is None.

    Raises:
        ConfigError: the file is missing, or a field is unknown, of the wrong type or out of range.
    """
    file = _find(path, saved_in)
    is_saved = file.suffix == ".json"
    source = EasyDict(load_saved_config(file)) if is_saved else _run(file)
    values = dict(source)
    without_effect = _take_unknown(values)
    set_by = dict.fromkeys(values, "file")
    values = {name: copy.deepcopy(default) for name, default in DEFAULTS.items()} | values
    for name in DEFAULTS:
        if distillation or name not in DISTILLATION:
            values[name] = check_type(name, values[name])
        if is_path(name, values[name]):
            values[name] = resolve_config_path(values[name])
    if is_saved:
        values["output"] = str(file.parent)  # the folder of a run may have been moved or copied
        values["test_output"] = ""  # a copied folder must not decide where results are written
    typed = _parse_overrides(overrides, distillation)
    set_by |= dict.fromkeys(typed, "command line")
    config = Config(**values | typed, set_by=set_by, without_effect=without_effect)
    _check(config, distillation)
    for name, value in config.to_dict().items():  # functions of the file, such as lr_func, may read fields from it
        setattr(source, name, value)
    _check_schedule(config, set(typed))
    if "rec" in typed:
        require_data(config)
    return config


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
    """Runs a Python config file and returns its `config`. Raises ConfigError if it fails or has none."""
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
    return config


def _take_unknown(values: dict[str, Any]) -> list[str]:
    """Removes names that are not fields, after renaming fields of earlier versions, and returns them.

    Raises ConfigError for a name that looks like a misspelt field.
    """
    for name in RENAMED.keys() & values.keys():
        new_name, value = rename_field(name, values.pop(name))
        values.setdefault(new_name, value)
    unknown = [name for name in values if name not in DEFAULTS]
    for name in unknown:
        value = values.pop(name)
        if similar_field(name) and name not in PUBLISHED_UNUSED:
            raise unknown_field(name, value)
    return unknown


def _parse_overrides(overrides: Iterable[str], distillation: bool) -> dict[str, Any]:
    """Returns the values of "field=value" texts by field. Raises ConfigError."""
    values: dict[str, Any] = {}
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals:
            raise ConfigError(f"config: {shorten(override)} should read field=value")
        name, text = rename_field(name.removeprefix("config."), text)
        if name not in DEFAULTS:
            raise unknown_field(name, text)
        value = parse_value(name, text)
        if distillation or name not in DISTILLATION:
            value = check_type(name, value)
        values[name] = expand_typed_path(value) if is_path(name, value) else value
    return values


def _check(config: Config, distillation: bool) -> None:
    """Raises ConfigError for values out of range, and for fields that do not fit each other."""
    for name in DEFAULTS:
        if distillation or name not in DISTILLATION:
            check_value(name, getattr(config, name))
    check_combinations(config)
    if distillation and config.teacher_genotype:
        check_genotype(config, "teacher_genotype")


def _check_schedule(config: Config, overridden: set[str]) -> None:
    """Checks an lr_func that the config file defines.

    Raises ConfigError if it does not return a factor for every epoch, or if overrides of lr_steps or warmup_epoch
    would have no effect.
    """
    if config.lr_func is None:
        return
    for name in sorted(overridden & {"lr_steps", "warmup_epoch"}):
        raise ConfigError(
            f"config {name}: {getattr(config, name)!r} is not used, because this config file defines lr_func",
            fix="change it there",
        )
    for epoch in range(config.num_epoch):
        try:
            factor = config.lr_func(epoch)
        except _CONFIG_FILE_ERRORS as error:
            raise ConfigError(f"config lr_func: fails for epoch {epoch}: {type(error).__name__}: {error}") from error
        if not isinstance(factor, int | float) or not 0 <= factor < math.inf:
            raise ConfigError(f"config lr_func: should return a factor for epoch {epoch}, returns {shorten(factor)}")
