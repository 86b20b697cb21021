"""Configs: `load_config` reads a config file over the defaults of config/base.py, applies overrides, checks all.

A config file is Python that sets fields on an EasyDict named `config`, as in the published code. It is code: run
only config files that you trust. A run's own config.json (config/saved.py) is data, and runs nothing.
"""

import copy
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from easydict import EasyDict

from backbones.names import NET_NAMES
from config.base import config as defaults
from config.command import CommandParser, add_config_arguments, overrides_of
from config.fields import (
    DISTILLATION,
    PATHS,
    PUBLISHED_UNUSED,
    ConfigError,
    base,
    check_genotype,
    check_together,
    check_type,
    check_value,
    from_text,
    similar_field,
    unknown_field,
)
from config.paths import from_project, from_working_folder, typed_path
from config.saved import read_config_file, read_saved, save_config, saved_config
from config.usage import log_unused
from utils.errors import shorten
from utils.filesystem import is_no_folder, make_writable, path_exists

__all__ = [
    "NET_NAMES", "CommandParser", "ConfigError", "add_config_arguments", "from_project", "from_working_folder",
    "load_config", "log_unused", "make_folder", "overrides_of", "parse_command", "require_data", "save_config",
    "shipped_configs", "typed_output", "typed_path",
]  # fmt: skip

FOLDER = Path(__file__).resolve().parent
# What the code of a config file may raise.
_OF_A_CONFIG = (
    ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, NameError, OSError, RuntimeError,
    SyntaxError, TypeError, ValueError,
)  # fmt: skip


def load_config(
    path: str | Path | None = None,
    overrides: Iterable[str] = (),
    distills: bool = False,
    saved_in: str | Path | None = None,
) -> EasyDict:
    """Returns the checked config of a file, with every field of config/base.py.

    Two attributes beside the fields: `set_by`, where each field that a person set was set ("file" or "command line"),
    and `without_effect`, the names in the file that nothing reads.

    Args:
        path: a config file, a config.json, or the folder of one. None: that of `saved_in`, else config/config.py.
        overrides: "field=value" each, the value typed as the field's default is.
        distills: whether the fields of distillation are used, and so must be right.
        saved_in: a checkpoint or the folder of one, whose config.json is taken where it has one and no path is named.

    Raises:
        ConfigError: no such file, an unknown field, a wrong type, an impossible value.
    """
    file = _find(path, saved_in)
    config = read_saved(file) if file.suffix == ".json" else _run(file)
    without_effect = [name for name in config if name not in base]
    for name in without_effect:
        if similar_field(name) and name not in PUBLISHED_UNUSED:
            raise unknown_field(name, config[name])
        EasyDict.pop(config, name)  # also where the name is that of a method
    set_by = dict.fromkeys(config, "file")
    for name, default in base.items():
        if name not in config:
            config[name] = copy.deepcopy(default)
    for name in base:
        if distills or name not in DISTILLATION:
            config[name] = check_type(name, config[name])
        if name in PATHS and isinstance(config[name], str):
            config[name] = from_project(config[name])
    if file.suffix == ".json":
        config.output = str(file.parent)  # a run's folder may have been moved or copied
        config.test_output = ""  # nor does a folder from elsewhere say where results are written
    overridden = _apply(config, overrides, distills)
    set_by |= dict.fromkeys(overridden, "command line")
    _check(config, distills)
    own_schedule = config.lr_func is not None
    if not own_schedule:
        set_by.pop("lr_func", None)
        config.lr_func = _step_schedule(config)
    _check_schedule(config, own_schedule, overridden)
    if "rec" in overridden:
        require_data(config)
    for name, value in (("set_by", set_by), ("without_effect", without_effect)):
        object.__setattr__(config, name, value)  # beside the fields, not one of them
    return config


def parse_command(
    description: str, switches: Iterable[str] = (), distills: bool = False, resume: bool = False
) -> EasyDict:
    """Returns the config that this command's line names: [--config FILE] [field=value …].

    Each of `switches` is a field that an option of its name sets to True: multi_step, --multi-step. distills: see
    `load_config`. resume: whether --resume is an option.
    """
    parser = CommandParser(description)
    add_config_arguments(parser, switches, resume)
    args = parser.parse()
    return load_config(args.config, overrides_of(args), distills)


def typed_output(overrides: Iterable[str]) -> str | None:
    """Returns the folder of an override "output=FOLDER", for commands that read what a run has left there."""
    parts = (override.removeprefix("config.").partition("=") for override in overrides)
    typed = [text for name, _, text in parts if name == "output"]
    return typed[-1] if typed else None


def require_data(config: EasyDict) -> None:
    """Raises ConfigError unless the data folder is there."""
    folder = Path(config.rec)
    if not path_exists(folder.is_dir):
        if path_exists(folder.exists):
            raise ConfigError(f"config rec: {config.rec!r} is a file; name the folder it is in: rec={folder.parent}")
        raise ConfigError(
            f"config rec: no folder {shorten(config.rec)}; put train.rec, train.idx, property and the *.bin sets "
            "there, or name another with rec=FOLDER (data/README.md)"
        )


def make_folder(config: EasyDict, field: str) -> Path:
    """The folder that the field names, made where it is missing. Raises ConfigError where no file can be written."""
    try:
        return make_writable(Path(config[field]))
    except OSError as error:
        raise ConfigError(
            f"config {field}: cannot write in {shorten(config[field])} ({error.strerror}); name another with "
            f"{field}=FOLDER"
        ) from None


def shipped_configs() -> list[Path]:
    """The config files in config/, without the chosen one."""
    return sorted(FOLDER.glob("config_*.py"))


def _find(path: str | Path | None, saved_in: str | Path | None) -> Path:
    """The config file: Python, or JSON by the suffix .json. Raises ConfigError where there is none."""
    if path is not None:
        path = Path(from_working_folder(str(path)))
        if path_exists(path.is_dir) and (saved := saved_config(path)):
            return saved
        if not is_no_folder(path):
            raise ConfigError(
                f"config: no file {shorten(str(path))}; there are {', '.join(map(str, shipped_configs()))}"
            )
        return path
    if saved_in is not None and (saved := saved_config(from_working_folder(str(saved_in)))):
        return saved
    default = FOLDER / "config.py"
    if not default.is_file():
        names = ", ".join(file.name for file in shipped_configs())
        raise ConfigError(
            f"config: config/config.py is missing; choose one of {names}, "
            "for example: cp config/config_PocketNetS128.py config/config.py"
        )
    return default


def _run(path: Path) -> EasyDict:
    """The `config` that the file defines."""
    source = read_config_file(path)
    namespace: dict[str, Any] = {"__name__": path.stem, "__file__": str(path)}
    try:
        # Not imported: a copied file of the same size and second would be served from a stale __pycache__.
        # Compiled from bytes: Python itself minds a byte-order mark or another encoding, as an import would.
        exec(compile(source, str(path), "exec"), namespace)
    except _OF_A_CONFIG as error:
        raise ConfigError(f"config {path}: {type(error).__name__}: {error}") from error
    config = namespace.get("config")
    if not isinstance(config, EasyDict):
        raise ConfigError(f"config {path}: should define config = EasyDict() and set its fields")
    if config is defaults:
        raise ConfigError(f"config {path}: should define its own config = EasyDict(), not change config/base.py's")
    return config


def _apply(config: EasyDict, overrides: Iterable[str], distills: bool) -> set[str]:
    """Sets the fields of "field=value" texts; returns their names."""
    names = set()
    for override in overrides:
        name, equals, text = override.partition("=")
        name = name.removeprefix("config.")
        if not equals:
            raise ConfigError(f"config: {shorten(override)} should read field=value")
        if name not in base:
            raise unknown_field(name, text)
        value = from_text(name, text)
        if distills or name not in DISTILLATION:
            value = check_type(name, value)
        if name in PATHS:
            value = from_working_folder(value)
        config[name] = value
        names.add(name)
    return names


def _check(config: EasyDict, distills: bool) -> None:
    for name in base:
        if distills or name not in DISTILLATION:
            check_value(name, config[name])
    check_together(config)
    if distills and config.teacher_genotype:
        check_genotype(config, "teacher_genotype")


def _check_schedule(config: EasyDict, own: bool, overridden: set[str]) -> None:
    """Raises ConfigError unless the file's own lr_func gives a factor for every epoch, and nothing else is to."""
    if not own:
        return
    for name in sorted(overridden & {"lr_steps", "warmup_epoch"}):
        raise ConfigError(
            f"config {name}: {config[name]!r} is not used: this config file defines lr_func, which decides; "
            "change it there"
        )
    for epoch in range(config.num_epoch):
        try:
            factor = config.lr_func(epoch)
        except _OF_A_CONFIG as error:
            raise ConfigError(f"config lr_func: fails for epoch {epoch}: {type(error).__name__}: {error}") from error
        if not isinstance(factor, int | float) or not 0 <= factor < math.inf:
            raise ConfigError(f"config lr_func: should give a factor for epoch {epoch}, gives {shorten(factor)}")


def _step_schedule(config: EasyDict) -> Callable[[int], float]:
    """The published learning-rate factor: optional warm-up, then a tenth at each of lr_steps."""

    def lr_factor(epoch: int) -> float:
        if epoch < config.warmup_epoch:
            return ((epoch + 1) / 5) ** 2
        return 0.1 ** sum(epoch >= step for step in config.lr_steps)

    return lr_factor
