"""Configs: `load_config` reads a config file over the defaults of config/base.py, applies overrides, checks all.

A config file is Python that sets fields on an EasyDict named `config`, as in the published code. It is code: run
only config files that you trust.
"""

import argparse
import ast
import copy
import difflib
import math
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from easydict import EasyDict

from backbones.genotypes import parse
from config.base import config as defaults
from utils.errors import UserError

FOLDER = Path(__file__).resolve().parent
base = copy.deepcopy(defaults)  # apart, for a config file can import and change the other
NET_NAMES = ("PocketNet", "PocketNetS", "PocketNetM", "iresnet18", "iresnet34", "iresnet50", "iresnet100")
# Spellings met in published configs: PocketNetS-128, PocketNetM256, resnet100. The size is in the fields.
_NET_NAME = re.compile(r"pocketnet[-_]?[sm]?[-_]?(128|256|512)?|i?resnet[-_]?(18|34|50|100)", re.IGNORECASE)

# What the code of a config file may raise.
_OF_A_CONFIG = (
    ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, NameError, OSError, RuntimeError,
    SyntaxError, TypeError, ValueError,
)  # fmt: skip


class ConfigError(UserError):
    """A config that cannot be used. The message names the field, the value and the mend."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.splitlines()))  # errors and values quoted in it may have several lines


def load_config(path: str | Path | None = None, overrides: Iterable[str] = ()) -> EasyDict:
    """The checked config of a file, with every field of config/base.py.

    Args:
        path: a config file. None: config/config.py.
        overrides: "field=value" each, the value typed as the field's default is.

    Raises:
        ConfigError: no such file, an unknown field, a wrong type, an impossible value.
    """
    config = _run(_find(path))
    given = set(config)
    for name, value in config.items():
        _check_known(name, value)
    for name, default in base.items():
        if name not in config:
            config[name] = copy.deepcopy(default)
    overridden = _apply(config, overrides)
    for name in base:
        config[name] = _typed(name, config[name])
    _check_values(config)
    if config.lr_func is None:
        config.lr_func = _step_schedule(config)
    elif "lr_func" in given:
        for name in sorted(overridden & {"lr_steps", "warmup_epoch"}):
            raise ConfigError(
                f"config {name}: {config[name]!r} is not used: this config file defines lr_func, which decides; "
                "change it there"
            )
    if "rec" in overridden:
        require_data(config)
    return config


def parse_command(description: str) -> EasyDict:
    """The config that this command's line names: [--config FILE] [field=value …]."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--config", metavar="FILE", help="config file (default: config/config.py)")
    parser.add_argument("overrides", nargs="*", metavar="field=value", help="a change of the config")
    args = parser.parse_intermixed_args()  # --config may stand between overrides
    return load_config(args.config, args.overrides)


def require_data(config: EasyDict) -> None:
    """Raises ConfigError unless the data folder is there."""
    if not _is_there(Path(config.rec).is_dir):
        raise ConfigError(
            f"config rec: no folder {config.rec!r}; put train.rec, train.idx, property and the *.bin sets there, "
            "or name another with rec=FOLDER (data/README.md)"
        )


def _is_there(check: Callable[[], bool]) -> bool:
    """What is_file or is_dir says; False where it may not look, or no path can be that long."""
    try:
        return check()
    except OSError:
        return False


def _find(path: str | Path | None) -> Path:
    if path is not None:
        if not _is_there(Path(path).is_file):
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
        _check_known(name, text)
        config[name] = _from_text(name, text)
        names.add(name)
    return names


def _check_known(name: str, value: Any) -> None:
    if name not in base:
        near = difflib.get_close_matches(name.lower(), base, n=1, cutoff=0)[0]
        raise ConfigError(f"config {name}: no such field (value {value!r}); the nearest is {near!r}")


def _from_text(name: str, text: str) -> Any:
    """The value a person typed for a field, in the type of its default."""
    default = base[name]
    if callable(default) or default is None:
        raise ConfigError(f"config {name}: can only be set in a config file")
    if isinstance(default, str):
        return text
    if isinstance(default, bool):
        known = {"true": True, "1": True, "false": False, "0": False}
        return known.get(text.lower(), text)
    if isinstance(default, list) and not text.startswith(("[", "(")):
        items = [item.strip() for item in text.removesuffix(",").split(",")] if text.strip() else []
        return [_literal(item) if default and not isinstance(default[0], str) else item for item in items]
    return _literal(text)


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return text  # of the wrong type: _typed says so


def _typed(name: str, value: Any) -> Any:
    """The value, checked against the type of the default; whole numbers are welcome as floats."""
    default = base[name]
    if default is None:
        if value is None or callable(value):
            return value
        raise ConfigError(f"config {name}: should be a function of the epoch, is {value!r}")
    if isinstance(default, float) and type(value) is int:
        try:
            return float(value)
        except OverflowError:
            raise ConfigError(f"config {name}: should be finite, is an integer of {value.bit_length()} bits") from None
    if isinstance(default, list) and isinstance(value, tuple):
        value = list(value)
    kind = dict if isinstance(default, dict) else type(default)
    if not isinstance(value, kind) or (type(value) is bool) != (kind is bool):
        raise ConfigError(f"config {name}: should be {kind.__name__}, is {value!r}")
    if isinstance(default, list) and not all(type(item) is type(default[0]) for item in value):
        raise ConfigError(f"config {name}: should be a list of {type(default[0]).__name__}, is {value!r}")
    return value


_AT_LEAST = {
    "embedding_size": 1, "channel": 1, "stem_multiplier": 1, "num_classes": 0, "num_image": 0, "workers": 0,
    "num_epoch": 1, "batch_size": 1, "max_steps": 0, "log_step": 1, "eval_step": 0, "eval_batch": 1, "global_step": 0,
    "teacher_global_step": 0, "student_global_step": 0, "lr": 0.0, "weight_decay": 0.0, "clip_norm": 0.0, "w": 0.0,
    "seed": 0,
    "n_layers": 4,  # the three reduction cells n//3, 2n//3 and n-1 must be different ones
}  # fmt: skip
_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "s": (lambda s: s > 0, "above 0"),
    "m": (lambda m: 0 <= m < math.pi / 2, "from 0 to below π/2"),
    "momentum": (lambda momentum: 0 <= momentum < 1, "from 0 to below 1"),
    "precision": (lambda precision: precision in ("fp32", "bf16", "fp16"), "fp32, bf16 or fp16"),
    "rec": (bool, "a folder"),
    "val_targets": (lambda names: all(name.strip() for name in names), "names of verification sets"),
    "output": (bool, "a folder"),
    "log_dir": (bool, "a folder"),
}


def _check_values(config: EasyDict) -> None:
    for name, value in config.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"config {name}: should be finite, is {value!r}")
    for name, least in _AT_LEAST.items():
        if config[name] < least:
            raise ConfigError(f"config {name}: should be at least {least}, is {config[name]!r}")
    for name, (holds, wanted) in _RULES.items():
        if not holds(config[name]):
            raise ConfigError(f"config {name}: should be {wanted}, is {config[name]!r}")
    for name in ("net_name", "teacher_network"):
        if not _NET_NAME.fullmatch(config[name]):
            raise ConfigError(f"config {name}: {config[name]!r} is unknown; the nearest is {_nearest(config[name])!r}")
    if config.genotype not in config.genotypes:
        known = ", ".join(config.genotypes)
        raise ConfigError(f"config genotype: {config.genotype!r} is none of the genotypes {known}")
    for name, text in config.genotypes.items():
        try:
            parse(text)
        except UserError as error:
            raise ConfigError(f"config genotypes[{name!r}]: {error}") from None


def _nearest(name: str) -> str:
    lower = {known.lower(): known for known in NET_NAMES}
    return lower[difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0)[0]]


def _step_schedule(config: EasyDict) -> Callable[[int], float]:
    """The published learning-rate factor: optional warm-up, then a tenth at each of lr_steps."""

    def lr_factor(epoch: int) -> float:
        if epoch < config.warmup_epoch:
            return ((epoch + 1) / 5) ** 2
        return 0.1 ** sum(epoch >= step for step in config.lr_steps)

    return lr_factor
