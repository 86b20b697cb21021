"""The processes of a run, as torchrun starts them; one process without it. NCCL with GPUs, gloo on CPUs."""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from utils.distributed.signals import CHECKPOINT_SIGNALS, handle_signals
from utils.errors import EXIT_CODE_FILE, UserError, restart_count

_DEVICE = "lo0" if sys.platform == "darwin" else "lo"
# The environment in which gloo and NCCL listen on the loopback's address alone. NCCL takes = for that very name.
LOOPBACK_ENVIRONMENT = {"GLOO_SOCKET_IFNAME": _DEVICE, "NCCL_SOCKET_IFNAME": f"={_DEVICE}"}


@dataclass(frozen=True)
class World:
    """This process's place among all, and its device."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and logs."""
        return self.rank == 0


@contextmanager
def init_distributed(device: str | None = None, timeout: int = 1800) -> Iterator[World]:
    """Joins the other processes for the time of the block.

    A request for a checkpoint does not end the process in the meantime; utils.distributed.shutdown acts on it.

    device: default a GPU where there is one. timeout: seconds that they may keep each other waiting.
    """
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    gpu = torch.cuda.is_available() and device != "cpu"
    if gpu and local_rank >= torch.cuda.device_count():
        raise UserError(f"NPROC: process {local_rank + 1} of this machine finds {torch.cuda.device_count()} GPUs")
    to_device = torch.device("cuda", local_rank) if gpu else torch.device("cpu")
    if gpu:
        torch.cuda.set_device(to_device)
    else:
        _keep_freed_memory()
    if size > 1:
        limit, store = timedelta(seconds=timeout), None  # without a store torch meets at MASTER_ADDR
        if (folder := launcher_folder()) and os.environ.get("GROUP_WORLD_SIZE") == "1":
            store = dist.FileStore(str(folder / f"store-{restart_count()}"), size)  # a file opens no port
            store.set_timeout(limit)
        dist.init_process_group("nccl" if gpu else "gloo", store=store, rank=rank, world_size=size, timeout=limit)
    try:
        with handle_signals(CHECKPOINT_SIGNALS, lambda *_: None):
            yield World(rank, size, to_device)
    finally:
        if size > 1:
            dist.destroy_process_group()


def launcher_folder() -> Path | None:
    """Returns the private folder that the launcher shares with the processes it starts; None without a launcher."""
    return Path(os.environ[EXIT_CODE_FILE]).parent if EXIT_CODE_FILE in os.environ else None


def _keep_freed_memory() -> None:
    """Has glibc keep the blocks a step frees for the next: given back, their page faults cost a fifth of a CPU step."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        m_trim_threshold, m_mmap_threshold = -1, -3  # malloc.h
        libc.mallopt(m_mmap_threshold, 1 << 30)
        libc.mallopt(m_trim_threshold, (1 << 31) - 1)


def to_device(module: nn.Module, world: World) -> nn.Module:
    """The module on this process's device, its convolutions in channels_last memory, which is faster everywhere."""
    return module.to(world.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def to_device_async(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of the CPU on the device; the host does not wait for the copy."""
    if device.type == "cuda" and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(world: World, precision: str) -> torch.autocast:
    """The context in which networks compute in fp32, bf16 or fp16, whatever the context around it."""
    # No cache of cast weights: the search moves weights in place and would go on with their old copies.
    return torch.autocast(world.device.type, PRECISIONS[precision], enabled=precision != "fp32", cache_enabled=False)


def wrap_ddp(module: nn.Module, world: World) -> nn.Module:
    """The module with its gradients averaged over the processes; batch norm stays each process's own."""
    if world.size == 1:
        return module
    return DistributedDataParallel(
        module,
        device_ids=[world.device] if world.device.type == "cuda" else None,
        broadcast_buffers=False,  # as published: running statistics are each process's own, rank 0's are saved
        gradient_as_bucket_view=True,
    )


def unwrap_ddp(module: nn.Module) -> nn.Module:
    """The module itself, whose state dict has the published keys."""
    return module.module if isinstance(module, DistributedDataParallel) else module
