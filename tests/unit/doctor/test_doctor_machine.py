"""What the doctor says of the machine: devices, precision, speed and memory."""

import os
import re
import shutil
import sysconfig
from dataclasses import replace

import torch

from tests.helpers.doctor_helpers import (
    check_plan,
    check_states,
    make_config,
    make_plan,
    one_process_on_a_cpu,  # noqa: F401  (for every test here)
    run_checks,
    single,
    single_failure,
)
from utils.distributed.process_group import World
from utils.doctor import training
from utils.doctor.command import SUBJECTS
from utils.doctor.plan import DISTILLATION
from utils.doctor.table import FAIL, PASS, WARN, Check, format_hours

# ------------------------------------------------------------------------------------------------- device and precision


def test_a_cpu_with_more_processes_than_cores(tmp_path, tiny_data, monkeypatch):
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    config = make_config(tmp_path, tiny_data)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert single(run_checks(config, "device")).state == PASS
    plan = replace(make_plan(config), world=World(0, cores + 1, torch.device("cpu")))
    assert single_failure(check_plan(plan, "device")).fix == f"NPROC={cores} at most"


def test_gpus(tmp_path, tiny_data, monkeypatch):
    config = make_config(tmp_path, tiny_data)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    check = single_failure(run_checks(config, "device"))  # a driver, and no GPU to be seen
    assert check.state == WARN and "nvidia-smi" in check.fix
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Some GPU")
    plan = replace(make_plan(config), world=World(0, 2, torch.device("cuda", 0)))
    assert single(check_plan(plan, "device")) == Check("device", PASS, "2 processes here, 2 GPUs: Some GPU")


def test_half_precision(tmp_path, tiny_data, monkeypatch):
    config = make_config(tmp_path, tiny_data, "precision=bf16", "teacher_precision=fp16")
    assert single_failure(run_checks(config, "precision")).fix == "precision=fp32"
    config.teacher_pth = "somewhere"
    assert [check.fix for check in run_checks(config, "precision", kind=DISTILLATION)] == [
        "precision=fp32",
        "teacher_precision=fp32",
    ]
    plan = replace(make_plan(config, DISTILLATION), world=World(0, 1, torch.device("cuda", 0)))
    for has, wanted in ((True, []), (False, [WARN])):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, has=has: has)
        assert check_states(SUBJECTS["precision"](plan)) == wanted


def test_compilation_without_a_compiler(tmp_path, tiny_data, monkeypatch):
    config = make_config(tmp_path, tiny_data, "compile=1")
    monkeypatch.setenv("CXX", "my++")
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    assert run_checks(config, "precision") == []
    monkeypatch.setattr(shutil, "which", lambda name: None)
    check = single_failure(run_checks(config, "precision"))
    assert (check.state, check.fix) == (FAIL, "install my++, or compile=False")


def test_compilation_without_the_headers_of_python(tmp_path, tiny_data, monkeypatch):
    config = make_config(tmp_path, tiny_data, "compile=1")
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    check = single_failure(run_checks(config, "precision"))
    assert (check.state, check.found) == (FAIL, f"compile=True: no {tmp_path}/Python.h, which compiled kernels include")
    (tmp_path / "Python.h").touch()
    assert run_checks(config, "precision") == []


# -------------------------------------------------------------------------------------------------------------- dry run


def dry_run(config):
    """Speed in images per second and peak memory in MiB, as the doctor says."""
    speed, memory = run_checks(config, "data", "steps", "task", "dry run")
    assert (speed.state, memory.state) == (PASS, PASS)
    found = re.fullmatch(r"([\d,.]+) img/s by 1 process: .* for the run, without evaluation", speed.found)
    size, unit = re.fullmatch(r"peak memory ([\d.]+) ([MG])iB in each process", memory.found).groups()
    return float(found[1].replace(",", "")), float(size) * (1 if unit == "M" else 1024)


def test_speed_and_hours_are_those_of_the_timed_steps(tmp_path, tiny_data, monkeypatch):
    """A clock that stands still but for two seconds before each of its readings in the dry run."""
    seconds = iter(range(0, 100, 2))
    monkeypatch.setattr(training.time, "perf_counter", lambda: next(seconds))
    speeds = []

    def train(task, loader, config, world, verify, resume_point):
        assert (config.eval_step, config.save_initial) == (1, False) and config.output != str(tmp_path / "out")
        for step in range(1, 10):
            speeds.append(verify(step))

    monkeypatch.setattr(training, "train", train)
    checks = run_checks(make_config(tmp_path, tiny_data), "data", "steps", "task", "dry run")
    assert checks[0].found == "4.0 img/s by 1 process: 0.01 hours (0.5 minutes) for the run, without evaluation"
    assert speeds == [{}, {}]  # ended at the third step


def test_peak_memory_grows_with_the_network(tmp_path, tiny_data):
    """The peak of this process: at least weights, gradients and momentum of a header that is larger than all else."""
    config = make_config(tmp_path, tiny_data)
    before = training.peak_memory() / 2**20
    _, small = dry_run(config)
    assert small >= 0.99 * before > 50  # printed with two decimals
    config.net_name, config.embedding_size = "IResNet50", 512
    plan = make_plan(config)
    assert check_states(check_plan(plan, "data", "steps", "task", "dry run")) == [PASS, PASS]
    weights = sum(parameter.nbytes for parameter in plan.task.backbone.parameters()) / 2**20
    assert weights > 100 and training.peak_memory() / 2**20 > 3 * weights


def test_the_dry_run_trains_the_weights_and_ends_before_the_epoch_does(tmp_path, tiny_data):
    for batch_size in (8, 20, 40):  # an epoch of 5, 2 and 1 steps
        plan = make_plan(make_config(tmp_path, tiny_data, f"batch_size={batch_size}", "save_step=1"))
        check_plan(plan, "data", "steps", "task")
        before = {name: value.clone() for name, value in plan.task.backbone.state_dict().items()}
        checks = check_plan(plan, "dry run")
        assert check_states(checks) == [PASS] * (1 if batch_size == 40 else 2)  # no speed from a single step
        assert any(not torch.equal(before[name], value) for name, value in plan.task.backbone.state_dict().items())
    assert not (tmp_path / "out").exists() and not (tmp_path / "logs").exists()


def test_a_time_of_less_than_an_hour_is_said_in_minutes_too():
    assert format_hours(90) == "0.03 hours (1.5 minutes)" and format_hours(3600 * 1234.5) == "1,234.50 hours"
