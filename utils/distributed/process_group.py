"""The process group of a run: ranks started by torchrun, or a single process."""

import ctypes
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from utils.distributed.precision import PRECISIONS, allow_tf32, flush_denormals, tf32_of
from utils.distributed.signals import CHECKPOINT_SIGNALS, handle_signals
from utils.errors import UserError, end_at_once

LAUNCHER_FOLDER_ENV = "POCKETNET_LAUNCHER_FOLDER"
_DEVICE = "lo0" if sys.platform == "darwin" else "lo"
# Makes gloo and NCCL listen on the loopback address only. NCCL reads "=" as an exact match of the name.
LOOPBACK_ENVIRONMENT = {"GLOO_SOCKET_IFNAME": _DEVICE, "NCCL_SOCKET_IFNAME": f"={_DEVICE}"}


@dataclass(frozen=True)
class World:
    """The rank of this process, the number of processes, and its device."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes files and logs."""
        return self.rank == 0


@contextmanager
def init_distributed(device: str = "auto", timeout: int = 1800) -> Iterator[World]:
    """Initialises the process group for the duration of the block. Collective.

    A signal that requests a checkpoint does not end the process inside the block; utils.distributed.shutdown handles
    it. Raises UserError as `select_device`.

    device: as config.device. timeout: seconds after which a collective fails.
    """
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    rank_device = select_device(device)
    gpu = rank_device.type == "cuda"
    if gpu:
        torch.cuda.set_device(rank_device)
    else:
        _keep_freed_memory()
    allow_tf32(False)  # torch's default allows it in convolutions
    world = World(rank, size, rank_device)
    if size > 1:
        _init_process_group(world, timedelta(seconds=timeout))
    try:
        with handle_signals(CHECKPOINT_SIGNALS, lambda *_: None), flush_denormals():
            yield world
    except BaseException as error:
        if gpu and size > 1:
            end_at_once(error)  # NCCL's clean-up waits for ranks that know nothing of the error
        raise
    finally:
        if size > 1:
            dist.destroy_process_group()


def _init_process_group(world: World, timeout: timedelta) -> None:
    """Initialises the default process group. Collective.

    On GPUs it has two backends: NCCL for tensors there, gloo for tensors on the CPU and for objects, which so never
    pass through the memory of a GPU. NCCL ends a process at its time-out with SIGABRT, while gloo raises an error. So
    NCCL waits twice as long.
    """
    gpu, store = world.device.type == "cuda", None  # without a store, torch uses MASTER_ADDR
    if (folder := launcher_folder()) and is_one_machine():
        store = dist.FileStore(str(folder / f"store-{restart_count()}"), world.size)  # a file needs no open port
        store.set_timeout(timeout)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if gpu else "gloo",
        store=store,
        rank=world.rank,
        world_size=world.size,
        timeout=2 * timeout if gpu else timeout,
        # Connects NCCL now. Not with other machines: where one has ended the run, it joins with gloo only (restart.py).
        device_id=world.device if gpu and is_one_machine() else None,
    )
    if gpu and dist.group.WORLD:
        dist.group.WORLD._get_backend(torch.device("cpu"))._set_default_timeout(timeout)


def count_gpus(device: str) -> int:
    """Returns the number of GPUs of this machine that commands use. device: as config.device."""
    return 0 if device == "cpu" else torch.cuda.device_count()


def select_device(device: str) -> torch.device:
    """Returns the device of this rank. device: as config.device.

    Raises UserError if a GPU is requested and there is none, or if there are more processes than GPUs.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "config device: cuda, but PyTorch finds no GPU",
            fix="check nvidia-smi and that torch is built for CUDA, or take device=cpu",
        )
    if device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    local_rank, gpus = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if local_rank >= gpus:
        raise UserError(
            f"NPROC: process {local_rank + 1} of this machine finds {gpus} GPUs",
            fix=f"NPROC={gpus} at most, or device=cpu",
        )
    return torch.device("cuda", local_rank)


def launcher_folder() -> Path | None:
    """Returns the private folder that the launcher shares with its processes, or None without a launcher."""
    return Path(os.environ[LAUNCHER_FOLDER_ENV]) if LAUNCHER_FOLDER_ENV in os.environ else None


def restart_count() -> int:
    """Returns how many times torchrun has restarted the processes of this machine."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))


def is_one_machine() -> bool:
    """Returns whether torchrun runs all processes on this machine."""
    return os.environ.get("GROUP_WORLD_SIZE") == "1"


def _keep_freed_memory() -> None:
    """Makes glibc keep freed memory for the next step. Returning it costs a fifth of a CPU step in page faults."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        m_trim_threshold, m_mmap_threshold = -1, -3  # malloc.h
        libc.mallopt(m_mmap_threshold, 1 << 30)
        libc.mallopt(m_trim_threshold, (1 << 31) - 1)


def to_device(module: nn.Module, world: World) -> nn.Module:
    """Moves a module to the device of this rank, convolutions in channels_last memory, which is always faster."""
    return module.to(world.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def to_device_async(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copies a CPU tensor to the device. The host does not wait for the copy."""
    if device.type == "cuda" and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


@contextmanager
def autocast(world: World, precision: str) -> Iterator[None]:
    """Makes networks compute in a precision, a key of PRECISIONS, whatever the surrounding context."""
    dtype = PRECISIONS[precision]
    # No cache of cast weights: the search changes weights in place, and the cache would hold their old values.
    options = {"enabled": dtype != torch.float32, "cache_enabled": False}
    with tf32_of(precision), torch.autocast(world.device.type, dtype, **options):
        yield


def wrap_ddp(module: nn.Module, world: World) -> nn.Module:
    """Wraps a module in DDP, which averages gradients over all ranks. Batch norm statistics stay per rank.

    Returns the module itself for a single process, and if it has no trainable parameter. Collective.
    """
    if world.size == 1 or not any(parameter.requires_grad for parameter in module.parameters()):
        return module
    with warnings.catch_warnings():
        # torch 2.13 warns that forward_sync_buffers is to replace broadcast_buffers; torch 2.11 does not have it.
        warnings.simplefilter("ignore", FutureWarning)
        return DistributedDataParallel(
            module,
            device_ids=[world.device] if world.device.type == "cuda" else None,
            broadcast_buffers=False,  # as published: running statistics are per rank, and those of rank 0 are saved
            gradient_as_bucket_view=True,
            bucket_cap_mb=25,  # torch's default has a small first bucket: a PocketNet's gradients are one all-reduce
        )


def unwrap_ddp(module: nn.Module) -> nn.Module:
    """Returns the module inside DDP, whose state dict has the published keys."""
    return module.module if isinstance(module, DistributedDataParallel) else module
