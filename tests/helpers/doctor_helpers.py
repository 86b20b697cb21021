"""Helpers for the tests of the doctor: run its checks and read their results."""

from collections import namedtuple
from pathlib import Path

import pytest
import torch

from tests.helpers.training import CPU, small_config, small_task
from utils.checkpoints.weights import save_weights
from utils.doctor.command import SUBJECTS, count_processes
from utils.doctor.plan import TRAINING, Kind, RunPlan
from utils.doctor.table import PASS, Check, collect_checks

Usage = namedtuple("Usage", "total used free")  # the result of shutil.disk_usage


@pytest.fixture(autouse=True)
def one_process_on_a_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    for name in ("NPROC", "NNODES", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "CXX", "CC"):
        monkeypatch.delenv(name, raising=False)


def make_config(folder, data, *fields):
    return small_config(folder, data, "val_targets=tiny", *fields)


def make_plan(config, kind: Kind = TRAINING) -> RunPlan:
    """Returns the plan of the run with as many processes as the environment says, checked by this process alone."""
    return RunPlan(config, kind, CPU, count_processes()[1])


def run_checks(config, *subjects: str, kind: Kind = TRAINING) -> list[Check]:
    """Runs the checks of the subjects in order and returns those of the last."""
    return check_plan(make_plan(config, kind), *subjects)


def check_plan(plan: RunPlan, *subjects: str) -> list[Check]:
    """Runs the checks of the subjects in order and returns those of the last."""
    checks: list[Check] = []
    for subject in subjects:
        checks = list(collect_checks(subject, SUBJECTS[subject](plan)))
    return checks


def check_states(checks) -> list[str]:
    return [check.state for check in checks]


def single(checks) -> Check:
    (check,) = checks
    return check


def single_failure(checks) -> Check:
    """Returns the only check that did not pass, which must have a fix."""
    check = single([check for check in checks if check.state != PASS])
    assert check.found and check.fix
    return check


def write_teachers(folder, data, epochs) -> Path:
    """Writes a teacher's checkpoint of each epoch (steps 5, 10, …) and returns their folder."""
    task = small_task(make_config(folder, data), 4)
    for epoch in range(epochs):
        save_weights(folder / "teachers" / f"{5 * (epoch + 1)}backbone.pth", task.backbone)
    return folder / "teachers"
