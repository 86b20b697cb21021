"""The fields of a config: which there are, how a typed value is read, and what values they take."""

import ast
import copy
import difflib
import math
import re
from collections.abc import Callable
from typing import Any

from easydict import EasyDict

from backbones.genotypes import parse
from config.base import config as defaults
from utils.errors import UserError

base = copy.deepcopy(defaults)  # apart, for a config file can import and change the other
PRECISIONS = ("fp32", "bf16", "fp16")
EVAL_RUNTIMES = ("auto", "torch", "openvino")
NET_NAMES = ("PocketNet", "PocketNetS", "PocketNetM", "iresnet18", "iresnet34", "iresnet50", "iresnet100")
# Spellings met in published configs: PocketNetS-128, PocketNetM256, resnet100. The size is in the fields.
_NET_NAME = re.compile(r"pocketnet[-_]?[sm]?[-_]?(128|256|512)?|i?resnet[-_]?(18|34|50|100)", re.IGNORECASE)


class ConfigError(UserError):
    """A config that cannot be used. The message names the field, the value and the mend."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.splitlines()))  # errors and values quoted in it may have several lines


def check_known(name: str, value: Any) -> None:
    if name not in base:
        near = difflib.get_close_matches(name.lower(), base, n=1, cutoff=0)[0]
        raise ConfigError(f"config {name}: no such field (value {value!r}); the nearest is {near!r}")


def from_text(name: str, text: str) -> Any:
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
        return text  # of the wrong type: typed says so


def typed(name: str, value: Any) -> Any:
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
    "teacher_channel": 0, "n_nodes": 1, "alpha_lr": 0.0, "alpha_weight_decay": 0.0, "cost_weight": 0.0,
    "skip_limit": -1, "search_eval": 0, "save_step": 1, "keep": 1, "max_bad_steps": 1, "timeout": 1,
    "n_layers": 4,  # the three reduction cells n//3, 2n//3 and n-1 must be different ones
}  # fmt: skip
_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "s": (lambda s: s > 0, "above 0"),
    "m": (lambda m: 0 <= m < math.pi / 2, "from 0 to below π/2"),
    "momentum": (lambda momentum: 0 <= momentum < 1, "from 0 to below 1"),
    "seed": (lambda seed: 0 <= seed < 2**63, "from 0 to below 2^63"),
    "precision": (lambda precision: precision in PRECISIONS, "fp32, bf16 or fp16"),
    "teacher_precision": (lambda precision: precision in PRECISIONS, "fp32, bf16 or fp16"),
    "search_data": (lambda data: data in ("faces", "cifar10"), "faces or cifar10"),
    "alpha_gradient": (lambda which: which in ("validation", "published"), "validation or published"),
    "alpha_betas": (lambda betas: len(betas) == 2 and all(0 <= b < 1 for b in betas), "two numbers from 0 to below 1"),
    "eval_runtime": (lambda runtime: runtime in EVAL_RUNTIMES, "auto, torch or openvino"),
    "teacher_n_layers": (lambda n: n == 0 or n >= 4, "0 or at least 4"),
    "head": (lambda head: head in ("whole", "sharded"), "whole or sharded"),
    "sample_rate": (lambda rate: 0 < rate <= 1, "above 0 and at most 1"),
    "resume": (lambda resume: resume in ("auto", "0", "1"), "auto, 0 or 1"),
    "on_bad_image": (lambda what: what in ("error", "skip"), "error or skip"),
    "rec": (bool, "a folder"),
    "val_targets": (lambda names: all(name.strip() for name in names), "names of verification sets"),
    "output": (bool, "a folder"),
    "log_dir": (bool, "a folder"),
}


def check_values(config: EasyDict) -> None:
    for name, value in config.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"config {name}: should be finite, is {value!r}")
    for name, least in _AT_LEAST.items():
        if config[name] < least:
            raise ConfigError(f"config {name}: should be at least {least}, is {config[name]!r}")
    for name, (holds, wanted) in _RULES.items():
        if not holds(config[name]):
            raise ConfigError(f"config {name}: should be {wanted}, is {config[name]!r}")
    if config.sample_rate < 1 and config.head != "sharded":
        raise ConfigError(f"config sample_rate: {config.sample_rate!r} needs head=sharded")
    for name in ("net_name", "teacher_network"):
        if not _NET_NAME.fullmatch(config[name]):
            raise ConfigError(f"config {name}: {config[name]!r} is unknown; the nearest is {_nearest(config[name])!r}")
    for name in ("genotype", *(["teacher_genotype"] if config.teacher_genotype else [])):
        if config[name] not in config.genotypes:
            known = ", ".join(config.genotypes)
            raise ConfigError(f"config {name}: {config[name]!r} is none of the genotypes {known}")
    for name, text in config.genotypes.items():
        try:
            parse(text)
        except UserError as error:
            raise ConfigError(f"config genotypes[{name!r}]: {error}") from None


def _nearest(name: str) -> str:
    lower = {known.lower(): known for known in NET_NAMES}
    return lower[difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0)[0]]
