"""The least time that a training step can take on a device, from its operations and the bytes that they move.

Each operation of torch counts as one pass: it reads its inputs and writes its outputs once, and takes as long as its
arithmetic or its traffic does at the speeds of the device, whichever is longer. Only operations that are merged, by a
compiler or by hand, can be faster.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.measures import median_seconds
from utils.datasets.alignment import SIZE

aten = torch.ops.aten


@dataclass(frozen=True)
class Work:
    """Work of one operation for one image, in float32."""

    multiply_adds: int
    bytes: int  # read and written


@dataclass(frozen=True)
class Ceilings:
    """Measured speeds of a device, in float32."""

    multiply_adds: float  # a second, of a large matrix product
    bytes: float  # a second, read and written by a large copy


def count_work(network: nn.Module) -> list[Work]:
    """Returns the work of each operation of a forward and a backward pass, for one image more."""

    def count(images: int) -> list[Work]:
        network.zero_grad()
        pixels = torch.empty(images, 3, SIZE, SIZE, device="meta")
        with _Counter() as counter:
            network(pixels).sum().backward()
        return counter.work

    network = copy.deepcopy(network).to("meta").train()  # shapes alone
    pairs = zip(count(3), count(2), strict=True)  # the difference leaves out the weights
    return [Work(three.multiply_adds - two.multiply_adds, three.bytes - two.bytes) for three, two in pairs]


class _Counter(TorchDispatchMode):
    """Counts the work of every operation of torch inside the block, except views."""

    def __init__(self) -> None:
        super().__init__()
        self.work: list[Work] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = function(*args, **(kwargs or {}))
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        outputs = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        memory = {tensor.untyped_storage()._cdata for tensor in inputs}
        makes_views = all(tensor.untyped_storage()._cdata in memory for tensor in outputs)
        if not makes_views or function._schema.is_mutable:
            moved = sum(tensor.numel() * tensor.element_size() for tensor in [*inputs, *outputs])
            self.work.append(Work(_multiply_adds(function.overloadpacket, args, output), moved))
        return output


def _multiply_adds(operation: Any, args: Any, output: Any) -> int:
    """Returns the multiply-adds of a matrix product, of a convolution or of its gradients, 0 for other operations."""
    if operation in (aten.mm, aten.addmm):
        return output.numel() * args[-2].shape[1]
    if operation is aten.convolution:
        return output.numel() * args[1][0].numel()  # each output sums over one filter
    if operation is aten.convolution_backward:
        n_gradients = sum(args[-1][:2])  # of the input and of the weight; each takes as many as the convolution
        return args[0].numel() * args[2][0].numel() * n_gradients
    return 0


def measure_ceilings(device: torch.device) -> Ceilings:
    """Measures the speeds of a device."""
    on_gpu = device.type == "cuda"
    n = 8192 if on_gpu else 2048
    a, b = torch.randn(2, n, n, device=device)
    source = torch.randn(1 << (28 if on_gpu else 26), device=device)  # beyond the caches
    target = torch.empty_like(source)
    product = median_seconds(lambda: torch.mm(a, b), device)
    copied = median_seconds(lambda: target.copy_(source), device)
    return Ceilings(n**3 / product, 2 * source.numel() * source.element_size() / copied)


def floor_seconds(work: list[Work], ceilings: Ceilings) -> float:
    """Returns the least seconds for one image, its operations one after the other."""
    return sum(max(w.multiply_adds / ceilings.multiply_adds, w.bytes / ceilings.bytes) for w in work)
