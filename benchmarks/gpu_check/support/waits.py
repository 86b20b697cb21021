"""Makes an operation for which the host would wait for the device an error."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# Reading a number off a device is _local_scalar_dense; sizes that depend on data are those of the others.
_WAITS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select")


class _ForbidWaits(TorchDispatchMode):
    """Raises RuntimeError for operations that would make the host wait, were the tensors on a GPU."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name in _WAITS:
            raise RuntimeError(f"{func._schema.name} would make the host wait for a GPU")
        return func(*args, **(kwargs or {}))


@contextmanager
def forbid_waits(device: torch.device) -> Iterator[None]:
    """Raises RuntimeError for a wait in the block: on a GPU as CUDA reports it, on a CPU by the names of operations."""
    if device.type != "cuda":
        with _ForbidWaits():
            yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
