"""Memory of a training step: measured for networks, computed for the header; and the memory that is available."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from utils.datasets.transforms import SIZE
from utils.distributed.process_group import World, autocast

MEMINFO = Path("/proc/meminfo")
# Memory limits of a container, by cgroup v2 and v1.
LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def saved_activation_bytes(network: nn.Module, n: int, world: World, precision: str) -> int:
    """Returns the bytes that the network saves for the backward pass of n images, without its weights.

    Runs one forward and one backward pass.
    """
    saved: dict[int, int] = {}  # bytes by address, because several tensors may be views of one storage
    weights = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}

    def record(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    pixels = torch.zeros(n, 3, SIZE, SIZE, device=world.device).to(memory_format=torch.channels_last)
    with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor), autocast(world, precision):
        embeddings = network(pixels)
    embeddings.float().sum().backward()
    network.zero_grad(set_to_none=True)
    return sum(saved.values())


def header_step_bytes(
    head: str, size: int, classes: int, processes: int, batch: int, sample_rate: float = 1.0
) -> float:
    """Returns the bytes of a process's header at the peak of a step, with the gathered embeddings.

    The optimizer is SGD with momentum. head: whole or sharded. size: embedding size. batch: images per process.
    """
    needed = header_tensor_bytes(head, size, classes, processes, batch, sample_rate)
    # Embeddings of all processes, their gradient, and the copy of it that is all-reduced.
    return needed + (3 * 4.0 * processes * batch * size if head == "sharded" else 0)


def header_tensor_bytes(
    head: str, size: int, classes: int, processes: int, batch: int, sample_rate: float = 1.0
) -> float:
    """Returns the bytes of the header's own tensors at the peak of a step, by the formula of docs/scaling.md.

    Arguments as for `header_step_bytes`.
    """
    if head == "whole":
        kernel, logits = 4.0 * size * classes, 4.0 * batch * classes
        ddp_buckets = kernel if processes > 1 else 0  # gradients that DDP sends
        return 2 * kernel + max(4 * logits + kernel, 5 * kernel) + ddp_buckets
    columns, images = -(-classes // processes), processes * batch
    kernel, sampled, logits = (4.0 * columns * n for n in (size, size * sample_rate, images * sample_rate))
    temporary = max(logits + 2 * sampled, 3 * sampled)
    if sample_rate < 1:  # the gradient has all columns
        temporary = max(temporary, kernel + 3 * sampled)
    return 2 * kernel + temporary


def largest_output(network: nn.Module, world: World) -> int:
    """Returns the bytes of the largest layer output for one image."""
    sizes: list[int] = []

    def record(module: nn.Module, inputs: Any, output: Any) -> None:
        sizes.append(output.nbytes)

    handles = [module.register_forward_hook(record) for module in network.modules() if not list(module.children())]
    with torch.inference_mode():
        network(torch.zeros(1, 3, SIZE, SIZE, device=world.device))
    for handle in handles:
        handle.remove()
    return max(sizes)


def available_memory() -> int | None:
    """Returns the available bytes of this machine or its container; None if the system does not report them."""
    if not MEMINFO.is_file():
        return None
    lines = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines())
    limits = [path.read_text().strip() for path in LIMITS if path.is_file()]  # "max" means no limit
    return min([1024 * int(lines["MemAvailable"].split()[0]), *(int(limit) for limit in limits if limit.isdecimal())])
