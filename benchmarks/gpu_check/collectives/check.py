"""Collectives: the backend's own with one process, every helper with two, and the end of a run whose one rank fails.

NCCL refuses two processes on one GPU, so two processes need two GPUs. On a CPU the backend is gloo.
"""

import os
import subprocess
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from benchmarks.gpu_check.collectives.ranks import FAILING_RANK, call_helpers
from benchmarks.gpu_check.processes import start_group
from benchmarks.gpu_check.stages import Context
from utils.distributed.data_parallel import LARGE, DataParallel
from utils.distributed.process_group import (
    LAUNCHER_FOLDER_ENV,
    LOOPBACK_ENVIRONMENT,
    World,
    _init_process_group,
    select_device,
)
from utils.losses.partial_fc import _GatherRows

TIMEOUT = 60  # seconds without an answer
_AS_LAUNCHED = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "120"}  # as utils/distributed/launch.sh sets it
END_WITHIN = 30.0  # seconds from the failure of a rank to the end of all processes


def run(context: Context) -> None:
    """Runs the three parts."""
    os.environ.update(LOOPBACK_ENVIRONMENT)
    with context.report.part("one process"):
        _run_alone(context)
    gpus = torch.cuda.device_count()
    if context.on_gpu and gpus < 2:
        context.report.leave_out("every helper with two processes", f"{gpus} GPU")
        context.report.leave_out("one of two ranks fails", f"{gpus} GPU")
        return
    with context.report.part("every helper with two processes"):
        _run_two(context)
    with context.report.part("one of two ranks fails"):
        _fail_one(context)


def _run_alone(context: Context) -> None:
    """Calls, with one process, the collectives of which the helpers are made: with one, helpers call none."""
    device = select_device(context.device)
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"GROUP_WORLD_SIZE": "1", LAUNCHER_FOLDER_ENV: folder}
        if context.on_gpu:
            torch.cuda.set_device(device)
        start = time.monotonic()
        _init_process_group(World(0, 1, device), timedelta(seconds=TIMEOUT))
        try:
            _call_all(context, device)
        finally:
            dist.destroy_process_group()
            del os.environ["GROUP_WORLD_SIZE"], os.environ[LAUNCHER_FOLDER_ENV]
        context.report.measure("from the start of the process group to its end", time.monotonic() - start, "s")


def _call_all(context: Context, device: torch.device) -> None:
    """Checks each collective against what a single process should receive: its own values."""
    world = World(0, 1, device)
    for dtype, op in (
        (torch.float32, dist.ReduceOp.SUM),
        (torch.int32, dist.ReduceOp.MAX),
        (torch.bfloat16, dist.ReduceOp.SUM),
    ):
        check = f"all_reduce of {dtype}, one process".replace("torch.", "")
        with context.report.part(check):
            values = torch.arange(6, dtype=dtype, device=device)
            dist.all_reduce(values, op)
            context.report.expect(check, values.tolist() == list(range(6)))
    with context.report.part("broadcast, all_gather, one process"):
        values = torch.arange(6.0, device=device)
        dist.broadcast(values, 0)
        parts = [torch.empty_like(values)]
        dist.all_gather(parts, values)
        context.report.expect("broadcast, all_gather, one process", torch.equal(parts[0], values))
    with context.report.part("objects and CPU tensors, one process"):
        found: list[object] = [None]
        dist.all_gather_object(found, {"rank": 0})
        dist.broadcast_object_list(found)
        flag = torch.ones(3, dtype=torch.int32)
        work = dist.all_reduce(flag, dist.ReduceOp.MAX, dist.new_group(backend="gloo"), async_op=True)
        assert work is not None
        work.wait()
        context.report.expect(
            "objects and CPU tensors, one process", found == [{"rank": 0}] and flag.tolist() == [1, 1, 1]
        )
    with context.report.part("gathered rows and their gradient, one process"):
        rows = torch.ones(4, 3, device=device, requires_grad=True)
        _GatherRows.apply(rows, world).square().sum().backward()
        assert rows.grad is not None
        context.report.expect("gathered rows and their gradient, one process", bool((rows.grad == 2).all()))
    with context.report.part("DataParallel, one process"):
        network = nn.Linear(3, LARGE // 2).to(device)  # the weight's gradient is sent during the backward pass
        wrapped = DataParallel(network, world)
        wrapped(torch.ones(4, 3, device=device)).sum().backward()
        wrapped.average_gradients()
        gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
        expected = len(gradients) == 2 and all(bool((gradient == 4).all()) for gradient in gradients)
        context.report.expect("DataParallel, one process", expected)


def _run_two(context: Context) -> None:
    """Calls every helper in two processes, which write what is wrong."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(call_helpers, (context.device, Path(folder), TIMEOUT), nprocs=2)
        wrong = [line for path in sorted(Path(folder).glob("*.wrong")) for line in path.read_text().splitlines()]
    context.report.expect("every helper with two processes", not wrong, "; ".join(wrong))


def _fail_one(context: Context) -> None:
    """Starts two ranks with the launcher. Rank 1 fails alone while rank 0 waits for it on its device."""
    script = [str(Path(__file__).with_name("ranks.py")), context.device, str(TIMEOUT * 10)]
    command = ["-m", "utils.distributed.launch", "--standalone", "--nproc-per-node", "2", *script]
    output, failed_at = "", time.monotonic()
    with start_group([sys.executable, *command], os.environ | _AS_LAUNCHED, subprocess.PIPE) as process:
        assert process.stdout
        for line in process.stdout:
            print(line, end="", flush=True)
            output += line
            if line.strip() == FAILING_RANK:
                failed_at = time.monotonic()
        code = process.wait()
    seconds = time.monotonic() - failed_at
    ended = FAILING_RANK in output and code != 0 and "should not come here" not in output
    context.report.compare("one of two ranks fails: all end", seconds, END_WITHIN, f"exit code {code}", "s", also=ended)
