"""The distillation loss in float64, the task, and which teacher serves which epoch."""

import gc
import math
import os
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from backbones.build import build_backbone
from config import load_config
from config.base import Config
from tests.helpers.paths import ROOT
from tests.helpers.waits import CountWaits
from utils.checkpoints.weights import save_weights
from utils.distillation.schedule import (
    align_teacher_steps,
    check_teacher_files,
    log_teacher_schedule,
    teacher_file_per_epoch,
)
from utils.distillation.targets import TeacherTargets
from utils.distillation.task import DistillTask
from utils.distillation.teacher import NetworkTeacher, make_teacher
from utils.distributed.process_group import World, autocast, to_device
from utils.errors import UserError
from utils.losses.arcface import ArcFace
from utils.losses.embedding_mse import distillation_loss
from utils.training.arcface_task import ArcFaceTask
from utils.training.task import Batch

CPU = World(0, 1, torch.device("cpu"))
SMALL = ["channel=4", "n_layers=4", "embedding_size=16", "batch_size=8", "workers=0"]


def config_of(*overrides) -> Config:
    return load_config(ROOT / "config" / "config_demo.py", [*SMALL, *overrides])


def golden(student: np.ndarray, teacher: np.ndarray) -> tuple[float, np.ndarray]:
    """Loss and its gradient by the student, written out in float64.

    With u = a/|a|, loss = Σ (u - t)² / (B·D), and d u / d a = (I - u uᵀ) / |a|.
    """
    length = np.linalg.norm(student, axis=1, keepdims=True)
    unit = student / length
    difference = unit - teacher
    outer = 2 * difference / difference.size
    return float((difference**2).mean()), (outer - unit * (unit * outer).sum(1, keepdims=True)) / length


def embeddings(dtype=np.float64) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    student, teacher = rng.standard_normal((7, 16)) * rng.uniform(0.1, 30, (7, 1)), rng.standard_normal((7, 16))
    teacher /= np.linalg.norm(teacher, axis=1, keepdims=True)
    teacher[0] = student[0] / np.linalg.norm(student[0])  # learnt already
    teacher[1] = -student[1] / np.linalg.norm(student[1])
    return student.astype(dtype), teacher.astype(dtype)


def test_golden_loss_and_gradient_in_float64():
    student, teacher = embeddings()
    ours = torch.from_numpy(student).requires_grad_()
    loss = distillation_loss(ours, torch.from_numpy(teacher))
    loss.backward()
    expected, gradient = golden(student, teacher)
    assert loss.dtype == torch.float64 and expected == pytest.approx(0.1218369960988467, rel=1e-12)
    assert loss.item() == pytest.approx(expected, rel=1e-13)
    np.testing.assert_allclose(ours.grad.numpy(), gradient, rtol=1e-10, atol=1e-15)
    np.testing.assert_allclose(ours.grad.numpy()[:2], 0, atol=1e-15)
    free = ours.detach()[2:].requires_grad_()
    assert torch.autograd.gradcheck(distillation_loss, (free, torch.from_numpy(teacher[2:])))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2), (torch.float16, 2e-3)])
def test_the_loss_is_float32_whatever_the_students_precision(dtype, tolerance):
    student, teacher = embeddings(np.float32)
    loss = distillation_loss(torch.from_numpy(student).to(dtype), torch.from_numpy(teacher))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(golden(*embeddings())[0], rel=tolerance)


def test_the_loss_is_bounded_by_the_angle():
    """Unit vectors at angle θ: |a - b|² = 2 - 2 cos θ, over D elements."""
    for angle in (0.0, 0.3, math.pi):
        a, b = torch.tensor([[5.0, 0.0]]), torch.tensor([[math.cos(angle), math.sin(angle)]])
        assert distillation_loss(a, b).item() == pytest.approx((2 - 2 * math.cos(angle)) / 2, abs=1e-6)


# ------------------------------------------------------------------------------------------------------- the task


def a_batch(n=6, classes=4) -> Batch:
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(n, 3, 112, 112, generator=generator)
    labels = torch.randint(0, classes, (n,), generator=generator)
    return Batch(images, labels, torch.arange(n), torch.rand(n, generator=generator) < 0.5)


def a_task(tmp_path, w, **teacher_fields):
    config = config_of()
    torch.manual_seed(0)
    backbone, header, teacher = build_backbone(config), ArcFace(16, 4), build_backbone(config)
    save_weights(tmp_path / "7backbone.pth", teacher)
    targets = TeacherTargets(
        NetworkTeacher(build_backbone(config), CPU, **teacher_fields), [tmp_path / "7backbone.pth"]
    )
    task = DistillTask(backbone, header, targets, w)
    task.on_epoch_start(0)
    return task, to_device(teacher.eval(), CPU)


def test_the_task_adds_w_times_the_loss_to_arcface(tmp_path):
    batch = a_batch()
    task, teacher = a_task(tmp_path, w=30.0)
    named = task(batch)
    assert list(named) == ["Loss", "ArcLoss", "MSE"]
    arc = ArcFaceTask(task.backbone, task.header)(batch)["Loss"]
    with torch.no_grad():
        mse = distillation_loss(task.backbone(batch.images), F.normalize(teacher(batch.images)))
    assert named["ArcLoss"].item() == pytest.approx(arc.item(), rel=1e-6)
    assert named["MSE"].item() == pytest.approx(mse.item(), rel=1e-5)
    assert named["Loss"].item() == pytest.approx((arc + 30 * mse).item(), rel=1e-6)


def test_both_losses_reach_the_student_and_none_the_teacher(tmp_path):
    gradients = {}
    for w in (0.0, 50.0):
        task, _ = a_task(tmp_path, w)
        network = task.targets.teacher.network
        before = {key: value.clone() for key, value in network.state_dict().items()}
        task(a_batch())["Loss"].backward()
        gradients[w] = [p.grad for p in task.backbone.parameters()], task.header.kernel.grad
        assert all(p.grad is None and not p.requires_grad for p in network.parameters())
        assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())  # batch norm, too
    assert torch.equal(gradients[0.0][1], gradients[50.0][1])  # the header learns from ArcFace alone
    assert not any(torch.equal(a, b) for a, b in zip(gradients[0.0][0], gradients[50.0][0], strict=True))


def test_a_step_with_a_teacher_does_not_make_the_host_wait(tmp_path):
    task, _ = a_task(tmp_path, 50.0)
    with CountWaits() as mode:
        for _ in range(2):
            task(a_batch())["Loss"].backward()
    assert mode.waits == 0


@pytest.mark.parametrize(("teacher", "student"), [("fp32", "bf16"), ("bf16", "fp32"), ("fp16", "bf16")])
def test_the_teacher_has_a_precision_of_its_own(tmp_path, teacher, student):
    task, network = a_task(tmp_path, 1.0, precision=teacher)
    images = a_batch().images
    with autocast(CPU, student):
        ours = task.targets(a_batch())
    with torch.no_grad(), autocast(CPU, teacher):
        expected = F.normalize(network(images).float())
    assert ours.dtype == torch.float32 and torch.equal(ours, expected)
    assert not ours.is_inference()


def test_swapping_teachers_leaks_no_memory(tmp_path):
    config = config_of()
    for step in range(1, 4):
        save_weights(tmp_path / f"{step}backbone.pth", build_backbone(config))
    teacher = NetworkTeacher(build_backbone(config), CPU)
    targets = TeacherTargets(teacher, [tmp_path / f"{1 + epoch % 3}backbone.pth" for epoch in range(30)])
    places, counts = set(), []
    gc.freeze()  # what exists already is not counted again and again
    for epoch in range(30):
        targets.on_epoch_start(epoch)
        targets(a_batch(2))
        places.add(tuple(p.data_ptr() for p in teacher.network.parameters()))
        gc.collect()
        counts.append(sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects()))
    gc.unfreeze()
    assert len(places) == 1 and counts[1] == counts[-1]


# ---------------------------------------------------------------------------------------------- which teacher, when


@pytest.mark.parametrize(
    ("ends", "steps", "expected"),
    [
        ([5, 10, 15, 20], [7, 14, 21, 28], [7, 14, 21, 28]),  # as many epochs: each its own
        ([5, 10, 15, 20], [10, 11, 12, 13], [10, 11, 12, 13]),  # whatever their lengths
        ([5, 10], [7, 14, 21, 28], [14, 28]),
        ([10 * e for e in range(1, 14)], [7 * e for e in range(1, 27)], [7 * e for e in range(2, 27, 2)]),
        ([1, 2, 3, 4, 5, 6], [10, 20, 30], [10, 10, 20, 20, 30, 30]),
        ([1, 2, 3], [10, 20], [10, 20, 20]),
        ([1, 2, 3, 4, 5], [10], [10] * 5),
        ([3], [10, 20, 30], [30]),
        ([10 * e for e in range(1, 5)], [30, 35, 40], [30, 30, 30, 40]),  # the teacher's early files are gone
        ([10, 20, 30], [20, 30], [20, 20, 30]),  # its last epoch was cut short
        ([10, 20, 22], [10, 20, 30, 40], [20, 40, 40]),  # the student's is
    ],
)
def test_the_teacher_is_as_far_in_its_training_as_the_student(ends, steps, expected):
    assert align_teacher_steps(ends, steps) == expected


def test_the_steps_are_those_of_the_files(tmp_path):
    for name in ("0backbone.pth", "9backbone.pth", "10backbone.pth", "300backbone.pth", "300header.pth", "best.pth"):
        (tmp_path / name).touch()
    config = config_of("multi_step=1", f"teacher_pth={tmp_path}")
    assert [path.name for path in teacher_file_per_epoch(config, [4, 8, 12])] == [
        "9backbone.pth",
        "10backbone.pth",
        "300backbone.pth",
    ]
    config = config_of(f"teacher_pth={tmp_path}", "teacher_global_step=10")
    assert teacher_file_per_epoch(config, [4, 8, 12]) == [tmp_path / "10backbone.pth"] * 3


def test_the_teacher_of_each_epoch_is_logged(tmp_path, caplog, monkeypatch):
    from utils.logs.logger import log

    monkeypatch.setattr(log, "propagate", True)
    caplog.set_level("INFO", "pocketnet")
    log_teacher_schedule([tmp_path / "1backbone.pth", *[tmp_path / "2backbone.pth"] * 3])
    assert re.search(r"Teacher of epoch 0: .*/1backbone\.pth\n.*Teacher of epochs 1 to 3: .*/2backbone", caplog.text)


# ------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("files", "overrides", "message"),
    [
        ([], ["teacher_pth="], "config teacher_pth: is empty; name the folder"),
        ([], [], r"config teacher_pth: no \{global_step\}backbone\.pth in '.*'; train one or name another"),
        ([], ["multi_step=1"], r"config teacher_pth: no \{global_step\}backbone\.pth in"),
        (["0backbone.pth"], ["multi_step=1"], "config teacher_pth: .* only an untrained checkpoint"),
        (["5backbone.pth", "9backbone.pth"], [], r"teacher_global_step: no trained .*/7backbone\.pth; .* steps 5, 9"),
        (["0backbone.pth", "9backbone.pth"], ["teacher_global_step=0"], r"no trained .*/0backbone\.pth; .* steps 9"),
        (["0backbone.pth"], ["teacher_global_step=0"], "config teacher_pth: .* only an untrained checkpoint"),
        ([], ["multi_step=1", "teacher_pth=a.onnx"], "needs the folder of a teacher's checkpoints, not a.onnx"),
    ],
)  # fmt: skip
def test_a_teacher_that_is_missing(tmp_path, files, overrides, message):
    for name in files:
        (tmp_path / name).touch()
    config = config_of(f"teacher_pth={tmp_path}", "teacher_global_step=7", *overrides)
    with pytest.raises(UserError, match=message):
        teacher_file_per_epoch(config, [4, 8, 12])


@pytest.mark.parametrize("name", ["teacher.pth", "teacher.onnx"])
def test_a_teacher_that_is_a_pipe_is_named(tmp_path, name):
    os.mkfifo(tmp_path / name)
    config = config_of(f"teacher_pth={tmp_path / name}", f"output={tmp_path / 'out'}", "channel=4", "n_layers=4")
    files = teacher_file_per_epoch(config, [4])
    with pytest.raises(UserError, match=rf"{name}: is not a regular file \(a pipe\)"):
        check_teacher_files(make_teacher(config, CPU, build_backbone), files, CPU)


@pytest.mark.parametrize(
    ("saved", "fields", "message"),
    [

        (
            ["embedding_size=32"],
            [],
            r"tail\.6\.weight has shape \(32, 512, 1, 1\), but the config needs \(16, 512, 1, 1\)",
        ),
        (["channel=8"], [], r"stem\.0\.weight has shape \(32, 3, 3, 3\), but the config needs \(16, 3, 3, 3\)"),
        (["n_layers=5"], [], r"another network: it has .* \(.*\) .*and lacks .* \(.*\); check teacher_network"),
        ([], ["teacher_network=iresnet18"], r"has stem\.0\.weight \(16, 3, 3, 3\) .*lacks conv1\.weight \(64,"),
        ([], ["teacher_network=PocketNetM"], r"another network: .*check teacher_network"),
    ],
)  # fmt: skip
def test_a_teacher_of_another_network_names_the_file_and_both_shapes(tmp_path, saved, fields, message):
    save_weights(tmp_path / "7backbone.pth", build_backbone(config_of(*saved)))
    config = config_of("teacher_network=PocketNet", *fields)
    with pytest.raises(UserError, match=rf"7backbone\.pth: .*{message}") as refused:
        check_teacher_files(make_teacher(config, CPU, build_backbone), [tmp_path / "7backbone.pth"], CPU)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"no checkpoint" * 9])
def test_a_damaged_teacher(tmp_path, damage):
    path = tmp_path / "7backbone.pth"
    save_weights(path, build_backbone(config_of()))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=r"7backbone\.pth: not a readable checkpoint"):
        check_teacher_files(make_teacher(config_of("teacher_network=PocketNet"), CPU, build_backbone), [path], CPU)


def test_a_teacher_whose_training_failed(tmp_path):
    network = build_backbone(config_of())
    with torch.no_grad():
        network.stem[0].weight[3] = float("nan")
    save_weights(tmp_path / "7backbone.pth", network)
    teacher = make_teacher(config_of("teacher_network=PocketNet"), CPU, build_backbone)
    with pytest.raises(UserError, match=r"7backbone\.pth: stem\.0\.weight is not finite"):
        check_teacher_files(teacher, [tmp_path / "7backbone.pth"], CPU)


def test_the_last_of_the_teachers_is_tried_before_the_first_epoch(tmp_path):
    good, bad = tmp_path / "1backbone.pth", tmp_path / "2backbone.pth"
    save_weights(good, build_backbone(config_of()))
    save_weights(bad, build_backbone(config_of("embedding_size=32")))
    teacher = make_teacher(config_of("teacher_network=PocketNet"), CPU, build_backbone)
    with pytest.raises(UserError, match=r"2backbone\.pth"):
        check_teacher_files(teacher, [good, good, bad], CPU)


@pytest.mark.parametrize(
    ("fields", "channel", "cells"),
    [
        (["teacher_network=PocketNetM"], 32, 9),
        (["teacher_network=PocketNetS-128"], 16, 18),
        (["teacher_network=PocketNet"], 4, 4),
        (["teacher_network=PocketNet", "teacher_channel=12", "teacher_n_layers=6"], 12, 6),
    ],
)
def test_a_pocketnet_is_a_teacher_by_its_name_or_its_fields(fields, channel, cells):
    teacher = make_teacher(config_of(*fields), CPU, build_backbone)
    assert teacher.network.stem[0].out_channels == 4 * channel and len(teacher.network.cells) == cells
    assert teacher.network.tail[-1].num_features == 16  # the student's embedding
