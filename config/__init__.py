"""Configs: `load_config` reads a config file over the defaults of config/base.py, applies overrides, checks all.

A config file is Python that sets fields on an EasyDict named `config`, as in the published code. It is code: run
only config files that you trust.
"""

import argparse
import copy
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from easydict import EasyDict

from config.base import config as defaults
from config.fields import NET_NAMES, ConfigError, base, check_known, check_values, from_text, typed
from utils.files import is_there, make_writable

__all__ = [
    "NET_NAMES", "ConfigError", "add_config_arguments", "load_config", "make_folder", "parse_command", "require_data",
    "shipped_configs",
]  # fmt: skip

FOLDER = Path(__file__).resolve().parent
# What the code of a config file may raise.
_OF_A_CONFIG = (
    ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, NameError, OSError, RuntimeError,
    SyntaxError, TypeError, ValueError,
)  # fmt: skip


def load_config(path: str | Path | None = None, overrides: Iterable[str] = ()) -> EasyDict:
    """The checked config of a file, with every field of config/base.py.

    Args:
        path: a config file. None: config/config.py.
        overrides: "field=value" each, the value typed as the field's default is.

    Raises:
        ConfigError: no such file, an unknown field, a wrong type, an impossible value.
    """
    config = _run(_find(path))
    given = dict(config)
    for name, value in config.items():
        check_known(name, value)
    for name, default in base.items():
        if name not in config:
            config[name] = copy.deepcopy(default)
    overridden = _apply(config, overrides)
    for name in base:
        config[name] = typed(name, config[name])
    check_values(config)
    if config.lr_func is None:
        config.lr_func = _step_schedule(config)
    _check_schedule(config)
    if given.get("lr_func"):
        for name in sorted(overridden & {"lr_steps", "warmup_epoch"}):
            raise ConfigError(
                f"config {name}: {config[name]!r} is not used: this config file defines lr_func, which decides; "
                "change it there"
            )
    if "rec" in overridden:
        require_data(config)
    return config


def add_config_arguments(parser: argparse.ArgumentParser, switches: Iterable[str] = ()) -> None:
    """Adds what names a config to a command: [--config FILE] [field=value …]; see `parse_command`."""
    parser.add_argument("--config", metavar="FILE", help="config file (default: config/config.py)")
    parser.add_argument("overrides", nargs="*", metavar="field=value", help="a change of the config")
    parser.add_argument("--resume", choices=["auto", "0", "1"], help="resume=…; see config/base.py")
    for name in switches:
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, action="append_const", dest="on", const=f"{name}=True", help=f"{name}=True")
    parser.set_defaults(on=[])


def parse_command(description: str, switches: Iterable[str] = ()) -> EasyDict:
    """The config that this command's line names: [--config FILE] [field=value …].

    Each of `switches` is a field that an option of its name sets to True: multi_step, --multi-step.
    """
    parser = argparse.ArgumentParser(description=description)
    add_config_arguments(parser, switches)
    args = parser.parse_intermixed_args()  # --config may stand between overrides
    return load_config(args.config, overrides_of(args))


def overrides_of(args: argparse.Namespace) -> list[str]:
    """The changes of the config on a command's line, as add_config_arguments reads it."""
    return [*args.overrides, *args.on, *([f"resume={args.resume}"] if args.resume else [])]


def require_data(config: EasyDict) -> None:
    """Raises ConfigError unless the data folder is there."""
    folder = Path(config.rec)
    if not is_there(folder.is_dir):
        if is_there(folder.exists):
            raise ConfigError(f"config rec: {config.rec!r} is a file; name the folder it is in: rec={folder.parent}")
        raise ConfigError(
            f"config rec: no folder {config.rec!r}; put train.rec, train.idx, property and the *.bin sets there, "
            "or name another with rec=FOLDER (data/README.md)"
        )


def make_folder(config: EasyDict, field: str) -> Path:
    """The folder that the field names, made where it is missing. Raises ConfigError where no file can be written."""
    try:
        return make_writable(Path(config[field]))
    except OSError as error:
        raise ConfigError(
            f"config {field}: cannot write in {config[field]!r} ({error.strerror}); name another with {field}=FOLDER"
        ) from None


def _find(path: str | Path | None) -> Path:
    if path is not None:
        if not is_there(Path(path).is_file):
            raise ConfigError(f"config: no file {str(path)!r}; there are {', '.join(map(str, shipped_configs()))}")
        return Path(path)
    default = FOLDER / "config.py"
    if not default.is_file():
        names = ", ".join(file.name for file in shipped_configs())
        raise ConfigError(
            f"config: config/config.py is missing; choose one of {names}, "
            "for example: cp config/config_PocketNetS128.py config/config.py"
        )
    return default


def shipped_configs() -> list[Path]:
    """The config files in config/, without the chosen one."""
    return sorted(FOLDER.glob("config_*.py"))


def _run(path: Path) -> EasyDict:
    """The `config` that the file defines."""
    namespace: dict[str, Any] = {"__name__": path.stem, "__file__": str(path)}
    try:
        # Not imported: a copied file of the same size and second would be served from a stale __pycache__.
        # Compiled from bytes: Python itself minds a byte-order mark or another encoding, as an import would.
        exec(compile(path.read_bytes(), str(path), "exec"), namespace)
    except _OF_A_CONFIG as error:
        raise ConfigError(f"config {path}: {type(error).__name__}: {error}") from error
    config = namespace.get("config")
    if not isinstance(config, EasyDict):
        raise ConfigError(f"config {path}: should define config = EasyDict() and set its fields")
    if config is defaults:
        raise ConfigError(f"config {path}: should define its own config = EasyDict(), not change config/base.py's")
    return config


def _apply(config: EasyDict, overrides: Iterable[str]) -> set[str]:
    """Sets the fields of "field=value" texts; returns their names."""
    names = set()
    for override in overrides:
        name, equals, text = override.partition("=")
        name = name.removeprefix("config.")
        if not equals:
            raise ConfigError(f"config: {override!r} should read field=value")
        check_known(name, text)
        config[name] = from_text(name, text)
        names.add(name)
    return names


def _check_schedule(config: EasyDict) -> None:
    for epoch in range(config.num_epoch):
        try:
            factor = config.lr_func(epoch)
        except _OF_A_CONFIG as error:
            raise ConfigError(f"config lr_func: fails for epoch {epoch}: {type(error).__name__}: {error}") from error
        if not isinstance(factor, int | float) or not 0 <= factor < math.inf:
            raise ConfigError(f"config lr_func: should give a factor for epoch {epoch}, gives {factor!r}")


def _step_schedule(config: EasyDict) -> Callable[[int], float]:
    """The published learning-rate factor: optional warm-up, then a tenth at each of lr_steps."""

    def lr_factor(epoch: int) -> float:
        if epoch < config.warmup_epoch:
            return ((epoch + 1) / 5) ** 2
        return 0.1 ** sum(epoch >= step for step in config.lr_steps)

    return lr_factor
