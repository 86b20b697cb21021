"""Collective operations: broadcast, gather and reduce, and actions whose errors end all ranks.

Every function is a collective, except `shard_slice`: call it on all ranks, in the same order.
"""

from collections.abc import Callable, Iterable
from typing import Any, NoReturn, TypeVar

import numpy as np
import torch
import torch.distributed as dist

from utils.distributed.process_group import World
from utils.errors import RetryableError, UserError

T = TypeVar("T")


class RetryableExit(SystemExit):
    """Ends a process because another rank raised a RetryableError, which that rank prints."""


def broadcast_(tensors: Iterable[torch.Tensor], world: World) -> None:
    """Broadcasts the tensors of rank 0 to all ranks, in place."""
    if world.size > 1:
        for tensor in tensors:
            plain = tensor.contiguous()  # not every backend accepts channels_last memory
            dist.broadcast(plain, 0)
            tensor.copy_(plain)


def run_on_main(world: World, action: Callable[[], T]) -> T:
    """Calls `action` on rank 0 only and returns its result on all ranks. The result must be picklable.

    A UserError in `action` is raised on rank 0 and ends the other ranks without a message of their own.
    """
    outcome: list[Any] = [None, False]  # result or error, whether it failed
    if world.is_main:
        try:
            outcome = [action(), False]
        except UserError as error:
            outcome = [error, True]
    if world.size > 1:
        dist.broadcast_object_list(outcome)
    result, failed = outcome
    if failed:
        _raise_on_main(world, result)
    return result


def _raise_on_main(world: World, error: UserError) -> NoReturn:
    """Raises the error on rank 0, which prints it, and a silent exit with the same exit code on the other ranks."""
    if world.is_main:
        raise error
    raise RetryableExit(2) if isinstance(error, RetryableError) else SystemExit(2)


def main_process_first(world: World, action: Callable[[], T]) -> T:
    """Calls `action` on rank 0, then on the other ranks, and returns each rank's own result.

    Rank 0 may write files that the others then find. A UserError on rank 0 ends all ranks.
    """
    results: list[T] = []
    run_on_main(world, lambda: results.append(action()))
    return results[0] if results else action()


def run_on_all(world: World, action: Callable[[], T]) -> T:
    """Calls `action` on all ranks and returns each rank's own result.

    A UserError on any rank ends all of them. Rank 0 raises it, so that it is printed once.
    """
    result = try_on_all(world, action)
    if isinstance(result, UserError):
        _raise_on_main(world, result)
    return result


def try_on_all(world: World, action: Callable[[], T]) -> T | UserError:
    """Calls `action` on all ranks and returns each rank's own result.

    If any rank raised a UserError, all ranks return the error of the lowest such rank instead.
    """
    results: list[T] = []
    errors: list[Any] = [None] * world.size
    try:
        results.append(action())
    except UserError as error:
        errors[world.rank] = error
    if world.size > 1:
        dist.all_gather_object(errors, errors[world.rank])
    return next(filter(None, errors), None) or results[0]


def shard_slice(n: int, world: World) -> slice:
    """Returns this rank's contiguous slice of n items. Slice sizes differ by at most one. Not a collective."""
    bounds = np.linspace(0, n, world.size + 1).astype(int)
    return slice(int(bounds[world.rank]), int(bounds[world.rank + 1]))


def all_gather_rows(rows: np.ndarray, world: World) -> np.ndarray:
    """Returns the rows (n_i, …) of all ranks, concatenated in rank order, on all ranks."""
    if world.size == 1:
        return rows
    parts: list[Any] = [None] * world.size
    dist.all_gather_object(parts, rows)
    return np.concatenate(parts)


def all_gather_tensor(rows: torch.Tensor, world: World) -> torch.Tensor:
    """Returns the rows (B, …) of all ranks, concatenated in rank order, on all ranks: (N, …).

    All ranks have the same B. No gradient passes.
    """
    if world.size == 1:
        return rows
    parts = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(world.size)]
    dist.all_gather(parts, rows.contiguous())
    return torch.cat(parts)


def all_reduce_mean(values: torch.Tensor, world: World) -> torch.Tensor:
    """Averages a tensor over all ranks, in place, and returns it."""
    if world.size > 1:
        dist.all_reduce(values)
        values /= world.size
    return values
