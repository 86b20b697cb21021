"""What the tests of the doctor have in common: how it is asked, and how its answers are read."""

from collections import namedtuple
from pathlib import Path

import pytest
import torch

from tests.helpers.training import small_config, small_task
from utils.checkpoints.weights import save_weights
from utils.doctor import command as doctor
from utils.doctor.plan import RunPlan
from utils.doctor.table import PASS, Check, collect_checks

Usage = namedtuple("Usage", "total used free")  # as shutil.disk_usage gives it


@pytest.fixture(autouse=True)
def one_process_on_a_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    for name in ("NPROC", "NNODES", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "CXX", "CC"):
        monkeypatch.delenv(name, raising=False)


def config_of(folder, data, *fields):
    return small_config(folder, data, "val_targets=tiny", *fields)


def ask(config, *subjects: str, kd: bool = False) -> list[Check]:
    """What the doctor says of the last of the subjects, the others having been asked before. kd: of a distillation."""
    plan = doctor.plan_run(config, kd)
    told: list[Check] = []
    for subject in subjects:
        told = list(collect_checks(subject, doctor.SUBJECTS[subject](plan)))
    return told


def known(config, kd: bool = False) -> RunPlan:
    """The doctor's plan once the data and the steps are known. kd: of a distillation."""
    plan = doctor.plan_run(config, kd)
    assert all(check.state == PASS for subject in ("data", "steps") for check in doctor.SUBJECTS[subject](plan))
    return plan


def states(checks) -> list[str]:
    return [check.state for check in checks]


def only(checks) -> Check:
    (check,) = checks
    return check


def ill(checks) -> Check:
    """The only one that is not well; it must say how to mend it."""
    check = only([check for check in checks if check.state != PASS])
    assert check.found and check.fix
    return check


def teachers_of(folder, data, epochs) -> Path:
    """A folder with a teacher's checkpoint of each epoch: 5, 10, …"""
    task = small_task(config_of(folder, data), 4)
    for epoch in range(epochs):
        save_weights(folder / "teachers" / f"{5 * (epoch + 1)}backbone.pth", task.backbone)
    return folder / "teachers"
