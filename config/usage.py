"""Says which settings of a person have no effect on the command at hand."""

import logging

from easydict import EasyDict

from backbones.names import SIZES, parse_name
from config.fields import DISTILLATION, PUBLISHED_UNUSED, SEARCH, base
from utils.errors import shorten

log = logging.getLogger("pocketnet")  # that of utils.logs.run_log

_STUDENT = ("student_pth", "student_global_step", "student_header")
_POCKETNET = ("channel", "n_layers", "stem_multiplier", "genotype")
_NETWORK = ("net_name", "embedding_size", *_POCKETNET, "genotypes")
_EVALUATION = ("val_targets", "eval_step", "eval_batch", "eval_runtime", "test_output")
# The training commands: which fields they do not use, in whatever way they are set.
_UNUSED_BY = {
    "train": (*DISTILLATION, *SEARCH),
    "train_kd": SEARCH,
    "search": (
        *DISTILLATION, *_STUDENT, *_EVALUATION, "s", "m", "head", "sample_rate", "net_name", "genotype", "num_classes",
        "num_image", "compile",
    ),
}  # fmt: skip
# Other commands take the config of a training or a search: only what is typed for them is worth a warning.
_USED_OF_TYPED = {
    "eval": (*_NETWORK, *_EVALUATION, "rec", "dataset", "output", "workers", "timeout", "num_classes", "num_image"),
    "flops": (*_NETWORK, "output"),
    "visualize": ("genotype", "genotypes"),
    "derive": ("output",),
    "derive --genotype": (),
}


def log_unused(config: EasyDict, command: str, name: str = "this command") -> None:
    """Logs one warning with the fields that a person set and a command does not use, and what the file has beside
    fields: published names that nothing reads as a note, others as a warning.

    command: train, train_kd, search, or one of _USED_OF_TYPED. name: what the warning calls it.
    """
    known = [name for name in config.without_effect if name in PUBLISHED_UNUSED]
    unknown = [shorten(name, quote=False) for name in config.without_effect if name not in PUBLISHED_UNUSED]
    if known:
        log.info(f"Config: {', '.join(known)}: fields of the published config files that nothing uses")
    if unknown:
        log.warning(f"Config: {', '.join(unknown)}: no such fields, without effect (config/base.py lists the fields)")
    size = parse_name(config.net_name).size
    if size and (config.channel, config.n_layers) != SIZES[size]:
        log.warning(
            f"Config: net_name {config.net_name} has {SIZES[size][0]} channels and {SIZES[size][1]} cells by its name, "
            f"but channel={config.channel} and n_layers={config.n_layers} count; other sizes are net_name=PocketNet"
        )
    if unused := unused_fields(config, command):
        hint = "; ./train_kd.sh trains with a teacher" if command == "train" and set(unused) & {*DISTILLATION} else ""
        log.warning(f"Config: {', '.join(unused)}: set, but not used by {name}{hint}")


def unused_fields(config: EasyDict, command: str) -> list[str]:
    """Returns the fields that a person set to other values than the defaults and that the command does not use."""
    if command in _USED_OF_TYPED:
        typed = {name for name, where in config.set_by.items() if where == "command line"}
        unused = typed - {*_USED_OF_TYPED[command]}
    else:
        unused = {*_UNUSED_BY[command]}
        if command != "search" and not config.student_pth:
            unused |= {"student_global_step", "student_header"}
        if command != "search" and parse_name(config.net_name).depth:
            unused |= {*_POCKETNET}
    return [name for name in base if name in unused and name in config.set_by and config[name] != base[name]]
