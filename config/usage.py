"""Warnings about config fields that were set but have no effect on a command."""

import logging

from backbones.names import resolve_network_name
from config.base import Config
from config.fields import DEFAULTS, DISTILLATION, PUBLISHED_UNUSED, SEARCH
from utils.errors import UserError, shorten
from utils.registry import BACKBONES

log = logging.getLogger("pocketnet")  # the logger of utils.logs.logger

_STUDENT = ("student_pth", "student_global_step", "student_header", "freeze")
_BACKBONE_FIELDS = {name for backbone in BACKBONES.values() for name in backbone.fields}
_NETWORK = ("net_name", "embedding_size", *_BACKBONE_FIELDS, "genotypes")
_EVALUATION = ("val_targets", "eval_step", "eval_batch", "eval_runtime", "test_output")
# Fields that training commands do not use, whether set in the file or on the command line.
_UNUSED_BY = {
    "train": (*DISTILLATION, *SEARCH),
    "train_kd": SEARCH,
    "search": (
        *DISTILLATION, *_STUDENT, *_EVALUATION, "loss", "s", "m", "header", "sample_rate", "header_from",
        "header_frozen", "net_name", "genotype", "num_classes", "num_image", "compile",
    ),
}  # fmt: skip
# Fields that other commands use. They share config files with training, so only fields from the command line count.
_USED_BY = {
    "eval": (
        *_NETWORK, *_EVALUATION, "rec", "dataset", "output", "workers", "timeout", "num_classes", "num_image", "device",
    ),
    "flops": (*_NETWORK, "output"),
    "visualize": ("genotype", "genotypes"),
    "derive": ("output",),
    "derive --genotype": (),
}  # fmt: skip


def warn_unused_fields(config: Config, command: str, name: str = "this command") -> None:
    """Warns about fields that were set but that the command does not use, and about unknown names in the config file.

    Names of the published code that nothing uses are logged as information.

    command: train, train_kd, search, or one of _USED_BY. name: of the command in the warning.
    """
    known = [name for name in config.without_effect if name in PUBLISHED_UNUSED]
    unknown = [shorten(name, quote=False) for name in config.without_effect if name not in PUBLISHED_UNUSED]
    if known:
        log.info(f"Config: {', '.join(known)}: published config fields without effect")
    if unknown:
        log.warning(f"Config: {', '.join(unknown)}: unknown fields, ignored (config/base.py lists the fields)")
    size = BACKBONES[resolve_network_name(config.net_name)].size
    if size != (used := {name: getattr(config, name) for name in size}):
        by_name, by_fields = (" ".join(f"{key}={value}" for key, value in part.items()) for part in (size, used))
        warning = UserError(
            f"Config: net_name {config.net_name} stands for {by_name}, but {by_fields} are used",
            fix="net_name=PocketNet has any size",
        )
        log.warning(warning)
    if unused := unused_fields(config, command):
        fix = "./train_kd.sh trains with a teacher" if command == "train" and set(unused) & {*DISTILLATION} else ""
        log.warning(UserError(f"Config: {', '.join(unused)}: set, but not used by {name}", fix))


def unused_fields(config: Config, command: str) -> list[str]:
    """Returns the fields that were set to other values than their defaults and that the command does not use."""
    if command in _USED_BY:
        typed = {name for name, source in config.set_by.items() if source == "command line"}
        unused = typed - {*_USED_BY[command]}
    else:
        unused = {*_UNUSED_BY[command]}
        if command == "train_kd" and config.distill == "adadistill":
            unused.add("w")
        if command != "search" and not config.student_pth:
            unused |= {"student_global_step", "student_header"}
        if command != "search":
            unused |= _BACKBONE_FIELDS - {*BACKBONES[resolve_network_name(config.net_name)].fields}
    values = config.to_dict()
    return [name for name in DEFAULTS if name in unused and name in config.set_by and values[name] != DEFAULTS[name]]
