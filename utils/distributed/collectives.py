"""Collective operations of the processes of a run: what one of them decides, finds or computes reaches all."""

from collections.abc import Callable, Iterable
from typing import Any, NoReturn, TypeVar

import numpy as np
import torch
import torch.distributed as dist

from utils.distributed.process_group import World
from utils.errors import RetryableError, RetryableExit, UserError

T = TypeVar("T")


def broadcast_(tensors: Iterable[torch.Tensor], world: World) -> None:
    """Gives every process the main one's values of the tensors, in place."""
    if world.size > 1:
        for tensor in tensors:
            plain = tensor.contiguous()  # not every backend takes channels_last memory
            dist.broadcast(plain, 0)
            tensor.copy_(plain)


def run_on_main(world: World, check: Callable[[], T]) -> T:
    """The result of `check`, run on the main process only. Its UserError ends every process, told once."""
    told: list[Any] = [None, False]  # result, failed
    if world.is_main:
        try:
            told = [check(), False]
        except UserError as error:
            told = [error, True]
    if world.size > 1:
        dist.broadcast_object_list(told)
    result, failed = told
    if failed:
        _raise_on_main(world, result)
    return result


def _raise_on_main(world: World, error: UserError) -> NoReturn:
    """Raises the error on the main process, which prints it, and on the others what ends them alike."""
    if world.is_main:
        raise error
    raise RetryableExit(2) if isinstance(error, RetryableError) else SystemExit(2)


def main_process_first(world: World, action: Callable[[], T]) -> T:
    """The result of `action`, run by the main process, which may make files, then by the others, which find them."""
    results: list[T] = []
    run_on_main(world, lambda: results.append(action()))
    return results[0] if results else action()


def run_on_all(world: World, action: Callable[[], T]) -> T:
    """The result of `action`, run by every process. A UserError of any of them ends all, told once."""
    result = try_on_all(world, action)
    if isinstance(result, UserError):
        _raise_on_main(world, result)
    return result


def try_on_all(world: World, action: Callable[[], T]) -> T | UserError:
    """The result of `action`, run by every process; where any of them raised a UserError, the first one on all."""
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
    """This process's contiguous share of n things."""
    bounds = np.linspace(0, n, world.size + 1).astype(int)
    return slice(int(bounds[world.rank]), int(bounds[world.rank + 1]))


def all_gather_rows(rows: np.ndarray, world: World) -> np.ndarray:
    """Every process's (n_i, …) rows one after another, on every process."""
    if world.size == 1:
        return rows
    parts: list[Any] = [None] * world.size
    dist.all_gather_object(parts, rows)
    return np.concatenate(parts)


def all_reduce_mean(values: torch.Tensor, world: World) -> torch.Tensor:
    """The mean of a tensor over the processes."""
    if world.size > 1:
        dist.all_reduce(values)
        values /= world.size
    return values
