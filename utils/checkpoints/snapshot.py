"""Copies of the state of a run on the CPU, from which files are written while training continues."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

LARGE = 1 << 24  # bytes of a tensor that is copied from a GPU by itself


def cpu_snapshot(content: Any) -> Any:
    """Returns a copy of nested dicts and lists with all tensors copied to the CPU. Tuples become lists.

    Small tensors on a GPU are copied together: a network and its optimizer have thousands of them.
    """
    small: list[Tensor] = []

    def collect(tensor: Tensor) -> None:
        if _is_small_on_gpu(tensor):
            small.append(tensor)

    map_tensors(content, collect)
    copies = iter(copy_together(small))
    return map_tensors(content, lambda tensor: next(copies) if _is_small_on_gpu(tensor) else _copy_alone(tensor))


def _is_small_on_gpu(tensor: Tensor) -> bool:
    return tensor.is_cuda and tensor.nbytes < LARGE


def map_tensors(content: Any, function: Callable[[Tensor], Any]) -> Any:
    """Returns nested dicts and lists with the result of the function in place of each tensor. Tuples become lists."""
    if isinstance(content, Tensor):
        return function(content)
    if isinstance(content, dict):
        return {key: map_tensors(value, function) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [map_tensors(value, function) for value in content]
    return content


def _copy_alone(tensor: Tensor) -> Tensor:
    # contiguous: files should not depend on the memory format of the run that wrote them
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


def copy_together(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Returns contiguous copies on the CPU, made by one transfer for each dtype. All are on one device."""
    copies = [torch.empty(tensor.shape, dtype=tensor.dtype) for tensor in tensors]
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
        chosen = [(tensor, copy) for tensor, copy in zip(tensors, copies, strict=True) if tensor.dtype == dtype]
        flat = torch.cat([tensor.detach().flatten() for tensor, _ in chosen])
        on_cpu = torch.empty(flat.shape, dtype=dtype, pin_memory=flat.is_cuda).copy_(flat)
        parts = on_cpu.split([tensor.numel() for tensor, _ in chosen])
        # Each to memory of its own: a file has the memory of a tensor, not a part of it.
        for (_, copy), part in zip(chosen, parts, strict=True):
            copy.copy_(part.view(copy.shape))
    return copies
