"""Config fields: their names, how a typed value is parsed, and which values are valid."""

import ast
import difflib
import math
from collections.abc import Callable
from typing import Any

from backbones.genotypes import parse_genotype
from backbones.names import resolve_network_name
from config.base import TEACHER, Config
from utils.errors import UserError, shorten
from utils.registry import DATA_SOURCES, LOSSES, OPERATIONS, OPTIMIZERS

DEFAULTS = Config().to_dict()
CHOICES = {
    "device": ("auto", "cpu", "cuda"),
    "optimizer": tuple(OPTIMIZERS),
    "loss": tuple(LOSSES),
    "data_source": tuple(DATA_SOURCES),
    "precision": ("fp32", "tf32", "bf16", "fp16"),
    "teacher_precision": ("fp32", "bf16", "fp16"),
    "alpha_gradient": ("validation", "published"),
    "eval_runtime": ("auto", "torch", "openvino"),
    "header": ("replicated", "sharded"),
    "resume": ("auto", "0", "1"),
    "on_bad_image": ("error", "skip"),
    "distill": ("mse", "adadistill"),
}
PATHS = ("rec", "output", "log_dir", "test_output", "teacher_pth", "teacher_cache", "student_pth", "header_from")
DISTILLATION = (
    "distill", "w", "teacher_pth", "teacher_global_step", "multi_step", "teacher_network", "teacher_channel",
    "teacher_n_layers", "teacher_genotype", "teacher_precision", "teacher_cache",
)  # fmt: skip
SEARCH = (
    "search_space", "n_nodes", "second_order", "alpha_gradient", "alpha_lr", "alpha_betas", "alpha_weight_decay",
    "cost_weight", "beta_decay", "skip_limit", "search_eval",
)  # fmt: skip
# Set by published config files, but used neither by the published code nor here.
PUBLISHED_UNUSED = ("scale", "network")
_MIN_SIMILARITY = 0.8  # difflib similarity above which an unknown name counts as a misspelt field
# Names of fields in other projects.
_SYNONYMS = {
    "epoch": "num_epoch", "epochs": "num_epoch", "num_epochs": "num_epoch", "max_epochs": "num_epoch",
    "learning_rate": "lr", "wd": "weight_decay", "bs": "batch_size", "steps": "max_steps", "num_workers": "workers",
    "data": "rec", "data_dir": "rec", "data_path": "rec", "dataset_path": "rec", "out": "output", "out_dir": "output",
    "output_dir": "output", "save_dir": "output", "classes": "num_classes", "n_classes": "num_classes",
    "layers": "n_layers", "channels": "channel", "embedding": "embedding_size", "emb_size": "embedding_size",
    "backbone": "net_name", "margin": "m", "teacher": "teacher_pth", "amp": "precision", "val": "val_targets",
    "pretrained": "student_pth", "weights": "student_pth", "num_images": "num_image", "random_seed": "seed",
}  # fmt: skip


def is_path(name: str, value: Any) -> bool:
    """Returns whether a value of a field is a path, not a word such as header_from=teacher."""
    return name in PATHS and isinstance(value, str) and (name, value) != ("header_from", TEACHER)


class ConfigError(UserError):
    """A config that cannot be used. The problem names the field and its value."""

    def __init__(self, problem: str, fix: str = "") -> None:
        super().__init__(" ".join(problem.splitlines()), fix)  # quoted errors and values may have several lines


def similar_field(name: str) -> str | None:
    """Returns the field that a misspelt name, or a name from another project, most likely means, or None."""
    name = name.lower().strip().strip("-").replace("-", "_")
    if name in _SYNONYMS:
        return _SYNONYMS[name]
    return next(iter(difflib.get_close_matches(name, DEFAULTS, n=1, cutoff=_MIN_SIMILARITY)), None)


def unknown_field(name: str, value: Any) -> ConfigError:
    """Returns the error for an unknown field, with the field that may be meant."""
    similar = similar_field(name)
    fix = f"did you mean {similar!r}?" if similar else "config/base.py lists the fields"
    return ConfigError(f"config {shorten(name, quote=False)}: no such field (value {shorten(value)})", fix=fix)


def parse_value(name: str, text: str) -> Any:
    """Parses a value from the command line, guided by the type of the field's default.

    Text that does not fit the type is returned unchanged or as another type; `check_type` rejects it. Raises
    ConfigError for a field without a textual form, lr_func.
    """
    default = DEFAULTS[name]
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
    """Evaluates a Python literal. Returns other text unchanged, which `check_type` rejects."""
    try:
        return ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return text


def check_type(name: str, value: Any) -> Any:
    """Returns the value in the type of the field's default. Converts an integer to a float and a tuple to a list.

    Raises ConfigError for any other type.
    """
    default = DEFAULTS[name]
    if default is None:
        if value is None or callable(value):
            return value
        raise ConfigError(f"config {name}: should be a function of the epoch, is {shorten(value)}")
    if isinstance(default, float) and type(value) is int:
        try:
            return float(value)
        except OverflowError:
            raise ConfigError(f"config {name}: should be finite, is an integer of {value.bit_length()} bits") from None
    if isinstance(default, list) and isinstance(value, tuple):
        value = list(value)
    if name in CHOICES and type(value) is int:  # resume=1, as in published command lines
        value = str(value)
    kind = dict if isinstance(default, dict) else type(default)
    if not isinstance(value, kind) or (type(value) is bool) != (kind is bool):
        wanted = _listed(name) if name in CHOICES else "True or False (bool)" if kind is bool else kind.__name__
        raise ConfigError(f"config {name}: should be {wanted}, is {shorten(value)}")
    if kind is dict and not all(
        isinstance(key, str) and not isinstance(item, dict | list) for key, item in value.items()
    ):
        raise ConfigError(f"config {name}: should be a dict of names and texts, is {shorten(value)}")
    if isinstance(default, list) and not all(type(item) is type(default[0]) for item in value):
        raise ConfigError(f"config {name}: should be a list of {type(default[0]).__name__}, is {shorten(value)}")
    return dict(value) if kind is dict else value


def _listed(name: str) -> str:
    """Returns the choices of a field as text: "a, b or c"."""
    *others, last = CHOICES[name]
    return f"{', '.join(others)} or {last}"


_AT_LEAST = {
    "embedding_size": 1, "channel": 1, "stem_multiplier": 1, "num_classes": 0, "num_image": 0, "workers": 0,
    "num_epoch": 1, "batch_size": 1, "max_steps": 0, "log_step": 1, "eval_step": 0, "eval_batch": 1, "global_step": 0,
    "teacher_global_step": 0, "student_global_step": 0, "lr": 0.0, "weight_decay": 0.0, "clip_norm": 0.0, "w": 0.0,
    "teacher_channel": 0, "n_nodes": 1, "alpha_lr": 0.0, "alpha_weight_decay": 0.0, "cost_weight": 0.0,
    "beta_decay": 0.0, "skip_limit": -1, "search_eval": 0, "save_step": 1, "keep": 1, "max_bad_steps": 1, "timeout": 1,
    "n_layers": 4,  # the reduction cells n//3, 2n//3 and n-1 must differ
}  # fmt: skip
_MOST_INT = 10**15  # above any count of images or steps; sums and products below it are exact
_AT_MOST = {
    "num_epoch": 100_000,  # each epoch's learning rate is checked; use max_steps for longer runs
    "timeout": 10**6,  # seconds; loader workers accept at most 2,147,483
    "workers": 1024, "n_layers": 1000, "teacher_n_layers": 1000, "n_nodes": 100, "stem_multiplier": 1000,
    "channel": 65_536, "teacher_channel": 65_536, "embedding_size": 65_536, "batch_size": 10**6, "eval_batch": 10**6,
    "warmup_epoch": 100_000,
}  # fmt: skip


def _is_search_space(names: list[str]) -> bool:
    return set(names) <= OPERATIONS.keys() and len(set(names)) == len(names) and len({*names} - {"none"}) > 1


_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "s": (lambda s: s > 0, "above 0"),
    "m": (lambda m: 0 <= m < math.pi / 2, "from 0 to below π/2"),
    "momentum": (lambda momentum: 0 <= momentum < 1, "from 0 to below 1"),
    "seed": (lambda seed: 0 <= seed < 2**63, "from 0 to below 2^63"),
    "alpha_betas": (lambda betas: len(betas) == 2 and all(0 <= b < 1 for b in betas), "two numbers from 0 to below 1"),
    "teacher_n_layers": (lambda n: n == 0 or n >= 4, "0 or at least 4"),
    "sample_rate": (lambda rate: 0 < rate <= 1, "above 0 and at most 1"),
    "search_space": (_is_search_space, f"two or more of {', '.join(OPERATIONS)}, each once, besides none"),
    "rec": (bool, "a folder"),
    "val_targets": (lambda names: all(name.strip() for name in names), "names of verification sets"),
    "output": (bool, "a folder"),
    "log_dir": (bool, "a folder"),
}


def check_value(name: str, value: Any) -> None:
    """Raises ConfigError if a value of the right type is out of range or not one of the field's choices."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"config {name}: should be finite, is {value!r}")
    if name in _AT_LEAST and value < _AT_LEAST[name]:
        raise ConfigError(f"config {name}: should be at least {_AT_LEAST[name]}, is {value!r}")
    most = _AT_MOST.get(name, _MOST_INT)
    if type(value) is int and name != "seed" and value > most:
        raise ConfigError(f"config {name}: should be at most {most:,}, is {shorten(value)}")
    if name in CHOICES and value not in CHOICES[name]:
        raise ConfigError(f"config {name}: should be {_listed(name)}, is {shorten(value)}")
    if name in PATHS and "\0" in value:
        raise ConfigError(f"config {name}: should be a path, is {shorten(value)}")
    if name in _RULES and not _RULES[name][0](value):
        raise ConfigError(f"config {name}: should be {_RULES[name][1]}, is {shorten(value)}")
    if name in ("net_name", "teacher_network"):
        try:
            resolve_network_name(value)
        except UserError as error:
            raise ConfigError(f"config {name}: {error.problem}", error.fix) from None


def check_combinations(config: Config) -> None:
    """Raises ConfigError if fields that are valid separately do not fit each other."""
    if config.sample_rate < 1 and config.header != "sharded":
        raise ConfigError(f"config sample_rate: {config.sample_rate!r} needs header=sharded")
    for name, text in config.genotypes.items():
        try:
            parse_genotype(text)
        except UserError as error:
            raise ConfigError(f"config genotypes[{shorten(name)}]: {error.problem}", error.fix) from None
    check_genotype(config, "genotype")


def check_genotype(config: Config, name: str) -> None:
    """Raises ConfigError if the value of the field is not a name in config.genotypes."""
    if getattr(config, name) not in config.genotypes:
        known = shorten(", ".join(map(str, config.genotypes)), quote=False)
        raise ConfigError(f"config {name}: {shorten(getattr(config, name))} is not one of the genotypes {known}")
