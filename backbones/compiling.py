"""Compiles a network with torch.compile, by the parts that repeat in it."""

import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from torch import nn

from backbones.augment_cells import AugmentCell
from backbones.iresnet import IBasicBlock
from utils.filesystem import cache_folder

_MAX_GRAPHS = 64  # of one class of parts; torch's limit is 8, above which parts would run uncompiled


def compile_network(
    network: nn.Module, varying_batch: bool = False, backend: str | Callable[..., Any] = "inductor"
) -> None:
    """Makes a network compile its cells or residual blocks, or as a whole where it has neither.

    Equal parts share their code: PocketNetS has 18 cells of 8 kinds. Code is made at the first call, for its shapes,
    and kept for later runs in $TORCHINDUCTOR_CACHE_DIR, by default the user's cache folder. Copies of the network, such
    as the folded ones of verification, are not compiled.

    varying_batch: whether calls differ in batch size; the code then takes any. backend: of torch.compile.
    """
    _keep_code()
    # Imported for compiled networks only, because it takes seconds; and after the folder is set, because it sets one.
    import torch._dynamo

    torch._dynamo.config.cache_size_limit = max(torch._dynamo.config.cache_size_limit, _MAX_GRAPHS)
    parts = [module for module in network.modules() if isinstance(module, (AugmentCell, IBasicBlock))]
    modules: list[nn.Module] = [*parts] or [network]
    for module in modules:
        # Parts of other sizes are no reason to make sizes variable, as torch does by default.
        module.compile(dynamic=None if varying_batch else False, backend=backend)


def _keep_code() -> None:
    folder = cache_folder() / "compiled"
    with suppress(OSError):  # without a home folder that can be written, torch uses the temporary folder
        folder.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))
