"""What a step of training takes of memory, the network measured, the head computed; and what memory there is."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from utils.datasets.transforms import SIZE
from utils.distributed.process_group import World, autocast

MEMINFO = Path("/proc/meminfo")
LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))  # of a container


def saved_activation_bytes(network: nn.Module, n: int, world: World, precision: str) -> int:
    """What a network keeps of n images for the backward pass, which is then done, beside its weights."""
    kept: dict[int, int] = {}  # by address, for several tensors may be views of one
    weights = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    pixels = torch.zeros(n, 3, SIZE, SIZE, device=world.device).to(memory_format=torch.channels_last)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), autocast(world, precision):
        embeddings = network(pixels)
    embeddings.float().sum().backward()
    network.zero_grad(set_to_none=True)
    return sum(kept.values())


def head_bytes(head: str, size: int, classes: int, processes: int, batch: int, sample_rate: float = 1.0) -> float:
    """Bytes of a process's ArcFace head at the peak of a step of SGD with momentum, the gathered embeddings included.

    head: whole or sharded; size: of an embedding; batch: images on each process.
    """
    needed = header_bytes(head, size, classes, processes, batch, sample_rate)
    # Of all processes; their gradient, and a copy of it that the processes add up.
    return needed + (3 * 4.0 * processes * batch * size if head == "sharded" else 0)


def header_bytes(head: str, size: int, classes: int, processes: int, batch: int, sample_rate: float = 1.0) -> float:
    """The same of the header's own tensors alone: the formula of docs/scaling.md."""
    if head == "whole":
        kernel, logits = 4.0 * size * classes, 4.0 * batch * classes
        of_ddp = kernel if processes > 1 else 0  # the gradients that it sends
        return 2 * kernel + max(4 * logits + kernel, 5 * kernel) + of_ddp
    columns, images = -(-classes // processes), processes * batch
    kernel, taken, logits = (4.0 * columns * n for n in (size, size * sample_rate, images * sample_rate))
    beside = max(logits + 2 * taken, 3 * taken)
    if sample_rate < 1:  # the gradient is of all columns again
        beside = max(beside, kernel + 3 * taken)
    return 2 * kernel + beside


def largest_output(network: nn.Module, world: World) -> int:
    """Bytes of one image's largest output of a layer."""
    sizes: list[int] = []

    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        sizes.append(output.nbytes)

    handles = [module.register_forward_hook(note) for module in network.modules() if not list(module.children())]
    with torch.inference_mode():
        network(torch.zeros(1, 3, SIZE, SIZE, device=world.device))
    for handle in handles:
        handle.remove()
    return max(sizes)


def available_memory() -> int | None:
    """Bytes that this machine, or its container, can give; None where the system does not say."""
    if not MEMINFO.is_file():
        return None
    lines = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines())
    limits = [path.read_text().strip() for path in LIMITS if path.is_file()]  # "max" where there is none
    return min([1024 * int(lines["MemAvailable"].split()[0]), *(int(limit) for limit in limits if limit.isdecimal())])
