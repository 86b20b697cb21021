"""Gathers and scatters a matrix whose columns, one per class, are split over the ranks."""

from collections.abc import Iterator
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor

from utils.distributed.collectives import shard_slice
from utils.distributed.process_group import World

COLUMN_CHUNK = 1 << 16  # columns drawn, sent or received at once: 32 MiB for an embedding size of 128 in float32


@torch.no_grad()
def gather_columns(shard: Tensor, n_classes: int, world: World) -> Tensor | None:
    """Gathers the column shards of all ranks: (D, n_classes) on the CPU of rank 0, None elsewhere. Collective."""
    full = torch.empty(len(shard), n_classes, dtype=shard.dtype) if world.is_main else None
    for rank, full_columns, shard_columns in _column_chunks(n_classes, world):
        if full is not None:
            full[:, full_columns] = shard[:, shard_columns] if rank == 0 else _receive(shard, shard_columns, rank)
        elif rank == world.rank:
            dist.send(shard[:, shard_columns].contiguous(), 0)
    return full


@torch.no_grad()
def scatter_columns(full: Tensor | None, shard: Tensor, n_classes: int, world: World) -> Tensor:
    """Fills each rank's shard in place from rank 0's full (D, n_classes), and returns the shard. Collective."""
    for rank, full_columns, shard_columns in _column_chunks(n_classes, world):
        if world.is_main and full is not None:
            chunk = full[:, full_columns].to(shard.device, shard.dtype).contiguous()
            if rank == 0:
                shard[:, shard_columns] = chunk
            else:
                dist.send(chunk, rank)
        elif rank == world.rank:
            shard[:, shard_columns] = _receive(shard, shard_columns, 0)
    return shard


def _receive(shard: Tensor, columns: slice, sender: int) -> Tensor:
    """Receives these columns from another rank, with the rows, dtype and device of `shard`."""
    chunk = shard.new_empty(len(shard), columns.stop - columns.start)
    dist.recv(chunk, sender)
    return chunk


def _column_chunks(n_classes: int, world: World) -> Iterator[tuple[int, slice, slice]]:
    """Yields all columns in chunks: the rank that holds them, their slice of all columns, their slice of its shard."""
    for rank in range(world.size):
        shard = shard_slice(n_classes, replace(world, rank=rank))
        for start in range(shard.start, shard.stop, COLUMN_CHUNK):
            stop = min(start + COLUMN_CHUNK, shard.stop)
            yield rank, slice(start, stop), slice(start - shard.start, stop - shard.start)
