"""What the doctor says of the machine: devices, precision, memory."""

import json
import os
import shutil
from dataclasses import replace

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from tests.helpers.doctor_helpers import (
    check_states,
    make_config,
    one_process_on_a_cpu,  # noqa: F401  (for every test here)
    plan_with_data,
    run_checks,
    single,
    single_failure,
    write_teachers,
)
from tests.helpers.training import CPU, spawn_ranks
from utils.distributed.process_group import World
from utils.doctor import command as doctor
from utils.doctor import memory, step_memory
from utils.doctor.command import SUBJECTS
from utils.doctor.table import FAIL, PASS, WARN, Check, collect_checks
from utils.losses.header import header_loss, make_header

# ------------------------------------------------------------------------------------------------- device and precision


def test_a_cpu_with_more_processes_than_cores(tmp_path, tiny_data, monkeypatch):
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    config = make_config(tmp_path, tiny_data)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert single(run_checks(config, "device")).state == PASS
    monkeypatch.setenv("NPROC", str(cores + 1))
    assert single_failure(run_checks(config, "device")).fix == f"NPROC={cores} at most"


def test_gpus(tmp_path, tiny_data, monkeypatch):
    config = make_config(tmp_path, tiny_data)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    check = single_failure(run_checks(config, "device"))  # a driver, and no GPU to be seen
    assert check.state == WARN and "nvidia-smi" in check.fix
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Some GPU")
    assert single(run_checks(config, "device")) == Check("device", PASS, "2 processes here, 2 GPUs: Some GPU")
    monkeypatch.setenv("NPROC", "3")
    check = single_failure(run_checks(config, "device"))
    assert (check.state, check.fix) == (FAIL, "NPROC=2 at most")


def test_half_precision(tmp_path, tiny_data, monkeypatch):
    config = make_config(tmp_path, tiny_data, "precision=bf16", "teacher_precision=fp16")
    assert single_failure(run_checks(config, "precision")).fix == "precision=fp32"
    config.teacher_pth = "somewhere"
    assert [check.fix for check in run_checks(config, "precision", kd=True)] == [
        "precision=fp32",
        "teacher_precision=fp32",
    ]
    plan = replace(doctor.plan_run(config, distils=True), world=World(0, 1, torch.device("cuda", 0)))
    for has, wanted in ((True, [PASS, PASS]), (False, [WARN, PASS])):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, has=has: has)
        assert check_states(SUBJECTS["precision"](plan)) == wanted


def test_compilation_without_a_compiler(tmp_path, tiny_data, monkeypatch):
    config = make_config(tmp_path, tiny_data, "compile=1")
    monkeypatch.setenv("CXX", "my++")
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    assert single(run_checks(config, "precision")) == Check("precision", PASS, "compile=True, by my++")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    check = single_failure(run_checks(config, "precision"))
    assert (check.state, check.fix) == (FAIL, "install my++, or compile=False")


# --------------------------------------------------------------------------------------------------------------- memory


def test_memory_that_is_too_small(tmp_path, tiny_data, monkeypatch):
    config = make_config(tmp_path, tiny_data, "batch_size=20")
    plan = plan_with_data(config)
    fixed, by_image = memory.backbone_bytes(plan)

    def needed(batch):
        return (
            memory.rest_bytes(plan) + fixed + memory.HEAP * (by_image * batch + memory.plan_header_bytes(plan, batch))
        )

    need = int(needed(20))
    for free, state in ((need - 2, FAIL), (need + 2, WARN), (2 * need, PASS)):
        monkeypatch.setattr(memory, "available_memory", lambda free=free: free)
        check = single(run_checks(config, "data", "steps", "memory"))
        assert check.state == state
        if state == FAIL:
            fitting = int(check.fix.removeprefix("batch_size=").removesuffix(" fits"))
            assert needed(fitting) <= 0.85 * free < needed(fitting + 1)
    monkeypatch.setattr(memory, "available_memory", lambda: None)
    assert single_failure(run_checks(config, "data", "steps", "memory")).state == WARN


def test_memory_that_no_batch_fits(tmp_path, tiny_data, monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: 1 << 20)
    free_some = "free some; fewer processes, workers or classes need less"
    config = make_config(tmp_path, tiny_data)
    for processes, head, fix in (
        ("1", "whole", free_some),
        ("2", "whole", f"{free_some}, and head=sharded splits the header"),
        ("2", "sharded", free_some),
    ):
        monkeypatch.setenv("NPROC", processes)
        config.head = head
        check = single(run_checks(config, "data", "steps", "memory"))
        assert (check.state, check.fix) == (FAIL, fix)


def test_what_is_free_of_memory(tmp_path, monkeypatch):
    for name in ("meminfo", "limit", "other"):
        (tmp_path / name).write_text("")
    monkeypatch.setattr(step_memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(step_memory, "LIMITS", (tmp_path / "limit", tmp_path / "missing"))
    (tmp_path / "meminfo").write_text("MemTotal:  9000 kB\nMemAvailable:    4000 kB\nHugePages_Total:  0\n")
    (tmp_path / "limit").write_text("max\n")
    assert step_memory.available_memory() == 4000 * 1024
    (tmp_path / "limit").write_text("1000\n")
    assert step_memory.available_memory() == 1000
    (tmp_path / "meminfo").unlink()
    assert step_memory.available_memory() is None


def test_memory_of_gpus(tmp_path, tiny_data, monkeypatch):
    config = make_config(tmp_path, tiny_data, "batch_size=10")
    plan = plan_with_data(config)
    plan.world, plan.local_processes = World(0, 1, torch.device("cuda", 0)), 2
    free = {0: 5 << 30, 1: 3 << 30, 2: 0}  # the third is another's
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (free[index], 8 << 30))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")
    monkeypatch.setattr(memory, "backbone_bytes", lambda plan: (1 << 30, 3 << 28))
    told = list(memory.check_memory(plan))
    assert check_states(told) == [FAIL, PASS] and told[0].fix == "batch_size=2 fits"
    assert told[0].found.startswith("8.50 GiB needed of 3.00 GiB free on each Some GPU")

    def fails(plan):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")

    monkeypatch.setattr(memory, "backbone_bytes", fails)
    check = single(collect_checks("memory", memory.check_memory(plan)))
    assert check.state == FAIL and check.found == "a step of three images fails on cuda:0: CUDA out of memory."


def test_what_a_step_keeps_is_counted(tmp_path):
    """By hand: a convolution keeps its input, a batch norm its input and four numbers a channel."""
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, 2, 1, bias=False), torch.nn.BatchNorm2d(8), torch.nn.Flatten(), torch.nn.ReLU()
    )
    image, maps = 3 * 112 * 112 * 4, 8 * 56 * 56 * 4
    for n in (2, 5):
        assert step_memory.saved_activation_bytes(network, n, CPU, "fp32") == n * (image + 2 * maps) + 4 * 8 * 4
    assert all(parameter.grad is None for parameter in network.parameters())
    assert step_memory.largest_output(network, CPU) == maps


def test_a_teacher_and_half_precision_change_what_a_step_takes(tmp_path, tiny_data):
    teachers = write_teachers(tmp_path, tiny_data, 1)
    plan = plan_with_data(make_config(tmp_path, tiny_data))
    fixed, by_image = memory.backbone_bytes(plan)
    plan.config.precision = "bf16"
    assert memory.backbone_bytes(plan)[1] == pytest.approx(by_image / 2)
    fields = [f"teacher_pth={teachers}", "teacher_network=PocketNet", "multi_step=1"]
    taught = plan_with_data(make_config(tmp_path, tiny_data, *fields), kd=True)
    list(SUBJECTS["teacher"](taught))
    more, for_image = memory.backbone_bytes(taught)
    assert more - fixed == sum(parameter.nbytes for parameter in taught.backbone.parameters())
    assert for_image - by_image == 3 * 16 * 56 * 56 * 4


# ------------------------------------------------------------------------------------------------ memory of the head


CLASSES = 4000
HEADS = [["head=whole"], ["head=sharded"], ["head=sharded", "sample_rate=0.25"]]
SHAPES = [["embedding_size=16", "batch_size=8"], ["embedding_size=8", "batch_size=32"]]  # the logits small, and large
WAYS = [[*head, *shape] for head in HEADS for shape in SHAPES]


class Live(TorchDispatchMode):
    """Counts the bytes of the tensors that are there at once; `peak` is the most."""

    def __init__(self):
        super().__init__()
        self.sizes: dict[StorageWeakRef, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for value in made if isinstance(made, list | tuple) else [made]:
            if isinstance(value, torch.Tensor):
                storage = value.untyped_storage()
                self.sizes[StorageWeakRef(storage)] = storage.nbytes()
        self.sizes = {storage: size for storage, size in self.sizes.items() if not storage.expired()}
        self.peak = max(self.peak, sum(self.sizes.values()))
        return made


def peak_of_training(config, world) -> int:
    """Bytes of this process's tensors at the peak of steps of the head alone."""
    with Live() as live:
        header = make_header(config, CLASSES, world)
        optimizer = torch.optim.SGD(header.parameters(), 0.1, momentum=0.9, fused=True)
        embeddings = torch.randn(config.batch_size, config.embedding_size).requires_grad_()
        labels = torch.arange(config.batch_size) * (CLASSES // config.batch_size)
        live.peak = 0  # until here initial values were drawn
        for _ in range(2):
            header_loss(header, embeddings, labels).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            embeddings.grad = None
    return live.peak


def note_peaks(world, folder, data):
    """Each way's peak, in a file of this process."""
    peaks = [peak_of_training(make_config(folder, data, *way), world) for way in WAYS]
    (folder / f"{world.rank}.json").write_text(json.dumps(peaks))


def test_the_head_takes_what_is_reckoned(tmp_path, tiny_data, monkeypatch):
    note_peaks(CPU, tmp_path, tiny_data)
    spawn_ranks(note_peaks, tmp_path / "of 2", tiny_data)
    for processes, files in (("1", ["0.json"]), ("2", ["of 2/0.json", "of 2/1.json"])):
        monkeypatch.setenv("NPROC", processes)
        for file in files:
            for way, peak in zip(WAYS, json.loads((tmp_path / file).read_text()), strict=True):
                plan = doctor.plan_run(make_config(tmp_path, tiny_data, f"num_classes={CLASSES}", *way))
                assert memory.plan_header_bytes(plan, plan.config.batch_size) == pytest.approx(peak, rel=0.05), (
                    processes,
                    way,
                )
