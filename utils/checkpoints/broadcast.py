"""Sends the content of a checkpoint from rank 0 to all ranks, without a second copy of its tensors on any of them."""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from utils.checkpoints.snapshot import map_tensors
from utils.distributed.collectives import run_on_main
from utils.distributed.process_group import World


def read_on_main(world: World, read: Callable[[], Any]) -> Any:
    """Calls `read` on rank 0 only and returns its result, nested dicts and lists of CPU tensors, on all ranks.

    Collective: call on all ranks. A UserError in `read` ends them as in `run_on_main`.

    Only shapes, names and numbers travel as a pickle, which each rank would hold two or three times. The memory of each
    tensor is sent by itself, into that of the result, so bit by bit and whatever its dtype.
    """
    contents: list[Any] = []

    def read_outline() -> Any:
        contents.append(read())
        return map_tensors(contents[0], lambda tensor: tensor.to("meta"))

    outline = run_on_main(world, read_outline)
    if world.size == 1:
        return contents[0]
    content = contents[0] if contents else map_tensors(outline, _empty_on_cpu)
    map_tensors(content, lambda tensor: dist.broadcast(_bytes_of(tensor), 0) if tensor.numel() else None)
    return content


def _empty_on_cpu(outline: Tensor) -> Tensor:
    return torch.empty(outline.shape, dtype=outline.dtype)


def _bytes_of(tensor: Tensor) -> Tensor:
    """Returns the bytes of a tensor's values in order, (n,) uint8; a view of it if it is contiguous."""
    return tensor.detach().flatten().view(torch.uint8)
