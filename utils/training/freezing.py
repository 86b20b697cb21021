"""Frozen modules of a backbone, for fine-tuning: neither their weights nor their running statistics change."""

import re
from collections.abc import Iterator
from functools import partial

from torch import nn

from utils.errors import UserError, shorten
from utils.logs.logger import log


def freeze_modules(backbone: nn.Module, names: str) -> None:
    """Freezes the modules of a backbone that config.freeze names; call it before `wrap_ddp` wraps the backbone.

    Their parameters need no gradient, and they stay in evaluation mode whatever mode the backbone is put in. Raises
    UserError for a name that is no module, and if no weight is left to train.

    names: comma-separated, such as "stem,cells.0-8"; see `expand_ranges`.
    """
    modules = dict(backbone.named_modules())
    for name in expand_ranges(names):
        if not name or name not in modules:
            known = ", ".join(child for child, _ in backbone.named_children())
            raise UserError(f"config freeze: the network has no module {shorten(name)}", fix=f"its modules are {known}")
        modules[name].requires_grad_(False)
        _keep_in_eval_mode(modules[name])
    weights = sum(parameter.numel() for parameter in backbone.parameters())
    trained = sum(parameter.numel() for parameter in backbone.parameters() if parameter.requires_grad)
    if not trained:
        raise UserError(f"config freeze: {shorten(names)} leaves no weight of the backbone to train")
    log.info(f"Frozen: {names}; {trained:,} of the backbone's {weights:,} weights are trained")


def expand_ranges(names: str) -> Iterator[str]:
    """Yields the module names of a comma-separated list, in which "cells.0-8" stands for cells.0 to cells.8."""
    for name in map(str.strip, names.split(",")):
        match = re.fullmatch(r"(?P<parent>(.*\.)?)(?P<first>\d{1,4})-(?P<last>\d{1,4})", name)
        if match and int(match["first"]) <= int(match["last"]):
            yield from (f"{match['parent']}{i}" for i in range(int(match["first"]), int(match["last"]) + 1))
        else:
            yield name


def _keep_in_eval_mode(module: nn.Module) -> None:
    """Makes module.train(), which is also called after each verification, leave the module in evaluation mode."""
    module.train = partial(_stay_in_eval_mode, module)  # type: ignore[method-assign]
    module.eval()


def _stay_in_eval_mode(module: nn.Module, mode: bool = True) -> nn.Module:
    """Replaces module.train. A partial of it belongs, unlike a closure, to the copy of a module that is copied."""
    return nn.Module.train(module, False)
