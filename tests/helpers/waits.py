"""Counts how often the host would wait for the device."""

from torch.utils._python_dispatch import TorchDispatchMode


class CountWaits(TorchDispatchMode):
    """Counts in its block, in `waits`, the operations for which the host waits on a GPU.

    Reading a number off the device is the operation _local_scalar_dense; sizes that depend on data are nonzero.
    """

    waits = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.waits += func._schema.name in ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select")
        return func(*args, **(kwargs or {}))
