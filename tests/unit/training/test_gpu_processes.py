"""Several processes on GPUs, tried on CPUs: what NCCL would make wait, and which backend serves what."""

import copy
import ctypes
import multiprocessing
import os
import signal
import sys
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

from config.base import Config
from tests.helpers.training import spawn_ranks
from utils.distributed import data_parallel
from utils.distributed.blocked import end_if_blocked
from utils.distributed.collectives import all_gather_rows, run_on_main
from utils.distributed.data_parallel import average_gradients, wrap_ddp
from utils.distributed.launch import describe_death
from utils.distributed.process_group import LAUNCHER_FOLDER_ENV, init_distributed
from utils.distributed.runtime_errors import init_run
from utils.distributed.shutdown import GracefulShutdown
from utils.errors import UserError, run_cli

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["torch._dynamo", "tests.helpers.training"])


def rank_environment(rank: int, folder: Path) -> dict[str, str]:
    """Variables of a process that torchrun has started, one of two on this machine."""
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "GROUP_WORLD_SIZE": 1}
    return {name: str(value) for name, value in ranks.items()} | {LAUNCHER_FOLDER_ENV: str(folder)}


def start(function, *args) -> multiprocessing.process.BaseProcess:
    process = CONTEXT.Process(target=function, args=args, daemon=True)
    process.start()
    return process


# ------------------------------------------------------------------------------------------------- the process group


def test_nccl_serves_tensors_on_gpus_and_gloo_speaks_first(monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: calls.append(device))
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **kwargs: calls.append((backend, kwargs)))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: calls.append("destroyed"))
    for name, value in rank_environment(1, tmp_path).items():
        monkeypatch.setenv(name, value)
    with init_distributed(timeout=60) as world:
        assert world.device == torch.device("cuda", 1)
    device, (backend, options), end = calls
    assert device == options["device_id"] == world.device and end == "destroyed"
    assert backend == "cpu:gloo,cuda:nccl" and options["timeout"] == timedelta(seconds=120)


def _fail_alone(rank: int, folder: Path) -> None:
    """One of two ranks on GPUs, of which rank 1 fails. Leaving the process group takes forever, as with NCCL."""
    os.environ.update(rank_environment(rank, folder))
    torch.cuda.is_available, torch.cuda.device_count = lambda: True, lambda: 2
    torch.cuda.set_device = lambda device: None
    init = dist.init_process_group
    dist.init_process_group = lambda backend, device_id, **options: init("cpu:gloo,cuda:gloo", **options)
    dist.destroy_process_group = lambda: time.sleep(600)
    sys.stderr = (folder / f"{rank}.txt").open("w")

    def main() -> None:
        with init_run(Config(timeout=60)) as world:
            run_on_main(world, lambda: None)  # objects go through gloo: there is no GPU here
            if rank == 1:
                raise UserError("rank 1 has no disk")
            run_on_main(world, lambda: None)
            dist.barrier()

    run_cli(main)


def test_a_rank_that_fails_alone_ends_all_of_them(tmp_path):
    ranks = [start(_fail_alone, rank, tmp_path) for rank in range(2)]
    for process in ranks:
        process.join(30)
    assert [process.exitcode for process in ranks] == [2, 2]
    assert (tmp_path / "1.txt").read_text() == "error: rank 1 has no disk\n"
    assert (tmp_path / "0.txt").read_text().startswith("error: another process ended in the middle of a step; ")


def _meet(rank: int, folder: Path) -> None:
    """A rank whose machine has ended the run joins the gloo backend alone of the others (restart.py)."""
    store = dist.FileStore(str(folder / "store"), 2)
    dist.init_process_group(["gloo", "cpu:gloo"][rank], store=store, rank=rank, world_size=2)
    found = [None, None]
    dist.all_gather_object(found, rank)
    assert found == [0, 1]
    dist.destroy_process_group()


def test_a_rank_without_gpu_meets_the_gloo_backend_of_the_others(tmp_path):
    ranks = [start(_meet, rank, tmp_path) for rank in range(2)]
    for process in ranks:
        process.join(30)
    assert [process.exitcode for process in ranks] == [0, 0]


def _average(world, folder) -> None:
    torch.manual_seed(0)
    data_parallel.LARGE = 100
    layers = [nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(32, 8, bias=False), *(nn.Linear(8, 8) for _ in range(60))]
    network = nn.Sequential(*layers)
    network = network.to(memory_format=torch.channels_last)
    network[2].requires_grad_(False)
    reference, rank_inputs = copy.deepcopy(network), torch.randn(2, 2, 3, 4, 4)  # (ranks, B, 3, 4, 4)
    with torch.no_grad():
        network[0].weight.add_(world.rank)  # rank 0 sends its own
    wrapped = wrap_ddp(network, world)
    sent, all_reduce = [], dist.all_reduce
    dist.all_reduce = lambda values, **options: sent.append(values.numel()) or all_reduce(values, **options)
    for _ in range(2):
        wrapped.zero_grad()
        wrapped(rank_inputs[world.rank]).square().sum().backward()
        average_gradients(wrapped)
    assert sent == [8 * 3 * 9, 8 + 60 * 8 * 9] * 2
    (sum(reference(inputs).square().sum() for inputs in rank_inputs) / 2).backward()
    for ours, other in zip(network.parameters(), reference.parameters(), strict=True):
        if not ours.requires_grad:
            assert ours.grad is None
            continue
        assert ours.grad.stride() == ours.stride()
        torch.testing.assert_close(ours.grad, other.grad, rtol=1e-5, atol=1e-6)
        both = all_gather_rows(ours.grad.numpy()[None], world)
        assert np.array_equal(both[0], both[1])


def test_gradients_are_averaged_small_ones_in_one_all_reduce(tmp_path):
    spawn_ranks(_average, tmp_path)


# ------------------------------------------------------------------------------------------------------- signals


def _block(started) -> None:
    """Waits in a C function that no signal interrupts, as for a collective on a GPU."""
    signal.signal(signal.SIGTERM, lambda *_: None)
    mutex, pthread = ctypes.create_string_buffer(64), ctypes.CDLL(None)
    pthread.pthread_mutex_lock(mutex)
    with end_if_blocked(lambda: 0, grace=0.2):
        started.set()
        pthread.pthread_mutex_lock(mutex)


@pytest.mark.skipif(sys.platform != "linux", reason="the lock is Linux's")
def test_a_process_that_cannot_handle_a_signal_is_ended():
    started = CONTEXT.Event()
    process = start(_block, started)
    assert started.wait(30)
    process.terminate()
    process.join(30)
    assert process.exitcode == 128 + signal.SIGTERM


def test_a_process_that_handles_its_signals_goes_on(monkeypatch):
    received = []
    old_handler = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    ended = []
    monkeypatch.setattr(os, "_exit", ended.append)
    try:
        with end_if_blocked(lambda: len(received), grace=0.1):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.3)
    finally:
        signal.signal(signal.SIGTERM, old_handler)
    assert received == [signal.SIGTERM] and not ended and signal.set_wakeup_fd(-1) == -1


def _shut_down(world, folder) -> None:
    on_gpu = replace(world, device=torch.device("cuda", 0))
    with GracefulShutdown(on_gpu, timeout=60) as shutdown:
        os.kill(os.getpid(), signal.SIGTERM)
        assert shutdown.requested_signal == signal.SIGTERM and signal.set_wakeup_fd(-1) != -1
    with GracefulShutdown(world, timeout=60):
        assert signal.set_wakeup_fd(-1) == -1


def test_only_ranks_on_gpus_watch_for_signals_that_they_cannot_handle(tmp_path):
    spawn_ranks(_shut_down, tmp_path)


def test_the_launcher_names_the_signal_that_ended_a_process():
    assert "process 3 was ended by SIGABRT (exit code -6), as by NCCL where" in str(describe_death(3, 6))
    assert "process 0 was ended by SIGSEGV (exit code -11); " in str(describe_death(0, 11))
