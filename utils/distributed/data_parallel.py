"""Data parallel training: every rank has the whole module; after a backward pass the gradients are averaged."""

from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from utils.distributed.collectives import all_reduce_mean, broadcast_
from utils.distributed.process_group import World

LARGE = 1 << 20  # numbers of a gradient that is sent by itself: a copy of it would cost more than a collective


class DataParallel(nn.Module):
    """A module with the weights of rank 0 on all ranks. Batch norm statistics then stay per rank, as published.

    Takes the place of torch's DistributedDataParallel, which copies every gradient to its buckets by an operation of
    its own, 786 for a PocketNet. Here one operation joins the small gradients, and one all-reduce sends them. Those of
    large parameters, such as the header's kernel, are sent in place while the backward pass goes on.
    """

    def __init__(self, module: nn.Module, world: World) -> None:
        """Sends the weights of rank 0 to all ranks. Collective: call on all ranks."""
        super().__init__()
        self.module, self.world = module, world
        broadcast_((tensor.detach() for tensor in chain(module.parameters(), module.buffers())), world)
        self._sent: list[tuple[Tensor, Any]] = []  # gradients, and their all-reduces in progress
        for parameter in self._parameters_with_gradient():
            if parameter.numel() >= LARGE:
                parameter.register_post_accumulate_grad_hook(self._send)

    def forward(self, *inputs: Any) -> Any:
        """Calls the module."""
        return self.module(*inputs)

    def _parameters_with_gradient(self) -> list[Tensor]:
        return [parameter for parameter in self.module.parameters() if parameter.requires_grad]

    def _send(self, parameter: Tensor) -> None:
        gradient = _in_memory_order(parameter)
        self._sent.append((gradient, dist.all_reduce(gradient, async_op=True)))

    @torch.no_grad()
    def average_gradients(self) -> None:
        """Averages the gradients over all ranks. Collective: call on all ranks, after the backward pass."""
        small = [p for p in self._parameters_with_gradient() if p.grad is not None and p.numel() < LARGE]
        if small:
            flat = all_reduce_mean(torch.cat([_in_memory_order(parameter) for parameter in small]), self.world)
            offset = 0
            for parameter in small:
                parameter.grad = flat.as_strided(parameter.shape, parameter.stride(), offset)
                offset += parameter.numel()
        for gradient, work in self._sent:
            work.wait()
            gradient /= self.world.size
        self._sent = []


def _in_memory_order(parameter: Tensor) -> Tensor:
    """Returns a view of a parameter's gradient, (n,). Gradients have the strides of their parameters, on all ranks."""
    assert parameter.grad is not None
    return parameter.grad.as_strided((parameter.numel(),), (1,))


def wrap_ddp(module: nn.Module, world: World) -> nn.Module:
    """Wraps a module in DataParallel. Collective.

    Returns the module itself for a single process, and if it has no trainable parameter.
    """
    if world.size == 1 or not any(parameter.requires_grad for parameter in module.parameters()):
        return module
    return DataParallel(module, world)


def unwrap_ddp(module: nn.Module) -> nn.Module:
    """Returns the module inside DataParallel, whose state dict has the published keys."""
    return module.module if isinstance(module, DataParallel) else module


def average_gradients(module: nn.Module) -> None:
    """Averages a module's gradients over all ranks if it is wrapped. Collective: call after the backward pass."""
    if isinstance(module, DataParallel):
        module.average_gradients()
