"""Two ranks of the stage `collectives`. They call every helper, or one fails alone: python ranks.py DEVICE TIMEOUT"""

import os
import sys
from pathlib import Path

if not __package__:  # run as a script: import modules from the project folder
    sys.path[0] = str(Path(__file__).resolve().parents[3])

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from config.base import Config
from utils.distributed.collectives import (
    all_gather_rows,
    all_reduce_mean,
    broadcast_,
    main_process_first,
    run_on_all,
    run_on_main,
    shard_slice,
    try_on_all,
)
from utils.distributed.data_parallel import average_gradients, wrap_ddp
from utils.distributed.process_group import LAUNCHER_FOLDER_ENV, World, init_distributed
from utils.distributed.runtime_errors import init_run
from utils.distributed.shutdown import GracefulShutdown
from utils.errors import UserError, run_cli
from utils.losses.column_shards import gather_columns, scatter_columns
from utils.losses.margin import Margin
from utils.losses.partial_fc import ShardedHeader

FAILING_RANK = "rank 1 fails"
CLASSES, DIMENSION = 11, 4


def call_helpers(rank: int, device: str, folder: Path, timeout: int) -> None:
    """Calls every helper as one of two ranks, and writes to {rank}.wrong which gave a wrong result."""
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "GROUP_WORLD_SIZE": 1}
    os.environ |= {name: str(value) for name, value in ranks.items()} | {LAUNCHER_FOLDER_ENV: str(folder)}
    with init_distributed(device, timeout) as world:
        found = _plain_helpers(world) | _objects(world) | _modules(world) | _shutdown(world, timeout)
    wrong = [f"{name} on rank {rank}" for name, right in found.items() if not right]
    (folder / f"{rank}.wrong").write_text("\n".join(wrong))


def _plain_helpers(world: World) -> dict[str, bool]:
    """Returns by name whether the helpers for tensors and arrays gave what they should."""
    filled = torch.full((2, 3, 2, 2), float(world.rank), device=world.device).to(memory_format=torch.channels_last)
    broadcast_([filled], world)
    mean = all_reduce_mean(torch.full((3,), float(world.rank), device=world.device), world)
    rows = all_gather_rows(np.full((1 + world.rank, 2), world.rank), world)
    full = torch.arange(DIMENSION * CLASSES, dtype=torch.float32).view(DIMENSION, CLASSES)
    part = shard_slice(CLASSES, world)
    shard = torch.empty(DIMENSION, part.stop - part.start, device=world.device)
    scatter_columns(full if world.is_main else None, shard, CLASSES, world)
    gathered = gather_columns(shard, CLASSES, world)
    return {
        "broadcast_": bool((filled == 0).all()),
        "all_reduce_mean": bool((mean == 0.5).all()),
        "all_gather_rows": rows.tolist() == [[0, 0], [1, 1], [1, 1]],
        "scatter_columns": torch.equal(shard.cpu(), full[:, part]),
        "gather_columns": gathered is None if world.rank else gathered is not None and torch.equal(gathered, full),
    }


def _objects(world: World) -> dict[str, bool]:
    """Returns the same for the helpers that call a function on some ranks."""

    def fail_on_rank_1() -> int:
        if world.rank == 1:
            raise UserError("rank 1 has no disk")
        return 0

    def fail_on_rank_0() -> int:
        if world.is_main:
            raise UserError("rank 0 has no disk")
        return 0

    stopped = False
    try:
        run_on_main(world, fail_on_rank_0)
    except (UserError, SystemExit) as error:
        stopped = isinstance(error, UserError) == world.is_main
    return {
        "run_on_main": run_on_main(world, lambda: world.rank + 5) == 5,
        "run_on_main, error": stopped,
        "main_process_first": main_process_first(world, lambda: world.rank) == world.rank,
        "run_on_all": run_on_all(world, lambda: world.rank) == world.rank,
        "try_on_all": str(try_on_all(world, fail_on_rank_1)) == "rank 1 has no disk",
    }


class _NoMargin(Margin):
    """Leaves the cosine as it is."""

    def forward(self, cosine: torch.Tensor, norms: torch.Tensor | None) -> torch.Tensor:
        """Returns the cosine."""
        return cosine


def _modules(world: World) -> dict[str, bool]:
    """Returns the same for DataParallel and ShardedHeader: the gradients are those of one process with all images."""
    torch.manual_seed(0)
    network = nn.Linear(DIMENSION, DIMENSION).to(world.device)
    inputs, labels = torch.randn(6, DIMENSION), torch.arange(6)
    own = shard_slice(6, world)
    wrapped = wrap_ddp(network, world)
    header = ShardedHeader(DIMENSION, CLASSES, _NoMargin(), 8.0, world)
    header(wrapped(inputs[own].to(world.device)), labels[own].to(world.device)).backward()
    average_gradients(wrapped)
    alone = World(0, 1, torch.device("cpu"))
    torch.manual_seed(0)
    reference = nn.Linear(DIMENSION, DIMENSION)
    whole = ShardedHeader(DIMENSION, CLASSES, _NoMargin(), 8.0, alone)
    whole(reference(inputs), labels).backward()
    assert network.weight.grad is not None and reference.weight.grad is not None
    assert header.kernel.grad is not None and whole.kernel.grad is not None
    of_shard = whole.kernel.grad[:, header.class_slice]
    return {
        "wrap_ddp": torch.allclose(network.weight.grad.cpu(), reference.weight.grad, rtol=1e-3, atol=1e-5),
        "ShardedHeader": torch.allclose(header.kernel.grad.cpu(), of_shard, rtol=1e-3, atol=1e-5),
    }


def _shutdown(world: World, timeout: int) -> dict[str, bool]:
    """Returns the same for the requests that ranks agree on: those of rank 1, one call later."""
    with GracefulShutdown(world, timeout) as shutdown:
        shutdown.checkpoint_requested = world.rank == 1
        first, second = shutdown.agreed_requests(), shutdown.agreed_requests()
    return {"agreed_requests": not first.checkpoint and bool(second.checkpoint)}


def fail_alone() -> None:
    """Runs as one of two ranks, of which rank 1 fails after a few steps; rank 0 waits for it on its device."""
    device, timeout = sys.argv[1], int(sys.argv[2])
    with init_run(Config(device=device, timeout=timeout)) as world, GracefulShutdown(world, timeout) as shutdown:
        values = torch.ones(1 << 20, device=world.device)
        for step in range(10):
            if world.rank == 1 and step == 5:
                print(FAILING_RANK, flush=True)
                raise UserError(FAILING_RANK)
            all_reduce_mean(values, world)
            values.sum().item()
            shutdown.agreed_requests()
        dist.barrier()
    print("should not come here", flush=True)


if __name__ == "__main__":
    run_cli(fail_alone)
