"""The command train_kd.sh and the tools of distillation."""

import re
import sys

import pytest
import torch

from tests.helpers.commands import DEMO, run_command
from utils.checkpoints.weights import read_weights

SPEED_LINE = (
    r"Speed [\d.]+ samples/sec   Loss ([\d.]+)   ArcLoss ([\d.]+)   MSE ([\d.]+)   "
    r"Epoch: \d+   Global Step: \d+   Required: [\d.]+ hours"
)
TEACHER = ["teacher_network=PocketNet", "teacher_pth=output/demo", "teacher_global_step=12"]


def kd(demo, out, *arguments, **options):
    """Runs train_kd.sh if options, those of run_command, set NPROC; otherwise train_kd.py."""
    start = ["./train_kd.sh"] if options else [sys.executable, "train_kd.py"]
    places = [f"output={out / 'student'}", f"log_dir={out / 'logs'}", "save_initial=0"]
    return run_command(demo, *start, *DEMO, *TEACHER, *places, *arguments, **options)


def test_template_distillation_trains_logs_and_is_scored(demo, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    done = kd(demo, tmp_path, "num_epoch=2", "w=50", "eval_step=6", new_interpreter=True, NPROC="1")
    assert done.returncode == 0, done.stderr
    lines = re.findall(SPEED_LINE, done.stdout)
    assert len(lines) == 4
    for total, arc, mse in lines:
        assert float(total) == pytest.approx(float(arc) + 50 * float(mse), abs=1e-3) and float(mse) > 0
    plan = done.stdout.index("Teacher of epochs 0 to 1: output/demo/12backbone.pth")
    assert plan < done.stdout.index("Speed")
    (curves,) = (tmp_path / "logs").glob("*/student-*")
    board = EventAccumulator(str(curves)).Reload()
    assert {"train/Loss", "train/ArcLoss", "train/MSE", "verification/demo"} <= set(board.Tags()["scalars"])
    assert sorted(path.name for path in (tmp_path / "student").glob("*.pth")) == [
        "12backbone.pth", "12header.pth", "6backbone.pth", "6header.pth", "checkpoint.12.pth", "checkpoint.6.pth",
        "checkpoint.pth",
    ]  # fmt: skip
    scored = run_command(demo, sys.executable, "eval/eval.py", *DEMO, f"output={tmp_path / 'student'}")
    assert "[demo][12]Accuracy-Flip" in scored.stdout, scored.stderr


@pytest.mark.parametrize("switch", ["--multi-step", "multi_step=True", "config.multi_step=1"])
def test_multi_step_names_the_teacher_of_each_epoch_before_the_first_step(demo, tmp_path, switch):
    done = kd(demo, tmp_path, switch, "num_epoch=2", "teacher_global_step=99")
    assert done.returncode == 0, done.stderr
    plan = re.findall(r"Teacher of epoch (\d): output/demo/(\d+)backbone\.pth", done.stdout.split("Speed")[0])
    assert plan == [("0", "6"), ("1", "12")]


def test_two_processes_share_a_cache_that_was_filled_ahead(demo, tmp_path):
    cache = [f"teacher_cache={tmp_path / 'cache'}", f"output={tmp_path / 'student'}"]
    filled = run_command(demo, sys.executable, "-m", "utils.fill_teacher_cache", *DEMO, *TEACHER, *cache)
    assert filled.returncode == 0, filled.stderr
    assert "output/demo/12backbone.pth: embedded 48 images" in filled.stdout
    again = run_command(demo, sys.executable, "-m", "utils.fill_teacher_cache", *DEMO, *TEACHER, *cache)
    assert "embedded 0 images" in again.stdout
    done = kd(demo, tmp_path, *cache, "num_epoch=1", NPROC="2")
    assert done.returncode == 0, done.stderr
    assert "100 % filled" in done.stdout and len(re.findall(SPEED_LINE, done.stdout)) == 1


def test_two_processes_fill_a_cache_while_they_train(demo, tmp_path):
    cache = [f"teacher_cache={tmp_path / 'cache'}", f"output={tmp_path / 'student'}"]
    done = kd(demo, tmp_path, *cache, "num_epoch=2", "batch_size=5", NPROC="2")  # 8 of the 48 images are left out
    assert done.returncode == 0 and "Teacher cache of 12backbone.pth" in done.stdout, done.stderr
    assert len(list((tmp_path / "cache").iterdir())) == 3
    again = run_command(demo, sys.executable, "-m", "utils.fill_teacher_cache", *DEMO, *TEACHER, *cache)
    assert "100 % filled" in again.stdout and "embedded 0 images" in again.stdout, again.stderr


def test_a_damaged_teacher_stops_the_run_in_one_line(demo, tmp_path):
    intact = (demo / "output" / "demo" / "12backbone.pth").read_bytes()
    (tmp_path / "9backbone.pth").write_bytes(intact[: len(intact) // 2])
    for switch in ("teacher_global_step=9", "--multi-step"):
        failed = kd(demo, tmp_path, switch, f"teacher_pth={tmp_path}")
        assert failed.returncode == 2
        assert re.fullmatch(r"error: .*9backbone\.pth: not a readable checkpoint.*\n", failed.stderr), failed.stderr


def test_a_student_starts_from_weights(demo, tmp_path):
    start = ["student_pth=output/demo", "student_global_step=12"]
    done = kd(demo, tmp_path, *start, "max_steps=1", "lr=0")
    assert "Starts from the weights in output/demo/12backbone.pth, with a new header" in done.stdout, done.stderr
    ours = read_weights(tmp_path / "student" / "1backbone.pth")
    theirs = read_weights(demo / "output" / "demo" / "12backbone.pth")
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs if key.endswith(("weight", "bias")))
    assert not torch.equal(ours["stem.1.running_mean"], theirs["stem.1.running_mean"])  # it has seen a batch


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["teacher_pth="], "config teacher_pth: is empty"),
        (["teacher_pth=output/none"], "config teacher_pth: no .*backbone.pth in 'output/none'"),
        (["teacher_global_step=5"], "no trained output/demo/5backbone.pth; there are the steps 6, 12"),
        (["teacher_global_step=0"], "no trained output/demo/0backbone.pth; there are the steps 6, 12"),
        (["output=output/demo"], "config output: 'output/demo' is the teacher's folder; name another"),
        (["output=output/demo", "teacher_pth=output/demo/12backbone.pth"], "'output/demo' is the teacher's folder"),
        (["teacher_channel=8"], r"12backbone\.pth: .* has shape \(.*\), but the config needs \(.*\);"),
        (["teacher_network=iresnet50"], r"12backbone\.pth: belongs to another network: it has .* \(.*lacks .* \(.*\)"),
        (
            ["embedding_size=64"],
            r"12backbone\.pth: tail\.6\.weight has shape \(32, .*\), but the config needs \(64, .*\);",
        ),
        (["--multi-step", "num_epoch=2", "embedding_size=64"], r"6backbone\.pth: tail\.6\.weight has shape \(32,"),
        (["teacher_pth=train.py"], "train.py: not a readable checkpoint"),
        (["teacher_pth=none.onnx"], "none.onnx: no such teacher"),
        (["student_pth=output/demo", "student_global_step=3"], "output/demo/3backbone.pth: no such checkpoint"),
        (
            ["student_pth=output/demo", "student_global_step=6", "n_layers=5", "teacher_n_layers=4"],
            "6backbone.pth: belongs to another network",
        ),
        (["teacher_cache=train.py/below"], "config teacher_cache: cannot keep .* in train.py/below"),
        (["teacher_precision=int8"], "config teacher_precision: should be fp32, bf16 or fp16"),
        (["teacher_genotype=mine"], "config teacher_genotype: 'mine' is not one of the genotypes"),
        (["teacher_n_layers=2"], "config teacher_n_layers: should be 0 or at least 4"),
    ],
)  # fmt: skip
def test_every_refusal_is_one_line_before_any_training(demo, tmp_path, arguments, message):
    failed = kd(demo, tmp_path, *arguments)
    assert failed.returncode == 2, failed.stdout
    assert re.fullmatch(f"error: .*{message}.*\n", failed.stderr), failed.stderr
    assert "Speed" not in failed.stdout and not list(tmp_path.rglob("*.pth"))


def test_a_refusal_of_two_processes_starts_with_one_line(demo, tmp_path):
    failed = kd(demo, tmp_path, "teacher_global_step=5", NPROC="2")
    assert failed.returncode != 0
    assert failed.stderr.count("error: config teacher_global_step: no trained output/demo/5backbone.pth") == 1


def test_filling_checks_the_fields_of_distillation(demo, tmp_path):
    fill = [sys.executable, "-m", "utils.fill_teacher_cache", *DEMO, *TEACHER, f"teacher_cache={tmp_path}"]
    for field in ("teacher_precision=fp8", "teacher_genotype=mine", "teacher_channel=-3", "multi_step=maybe"):
        failed = run_command(demo, *fill, field)
        assert failed.returncode == 2 and re.fullmatch(rf"error: config {field.split('=')[0]}: .*\n", failed.stderr)


def test_filling_needs_a_cache_folder(demo):
    command = [sys.executable, "-m", "utils.fill_teacher_cache", *DEMO, *TEACHER]
    failed = run_command(demo, *command, new_interpreter=True)
    assert failed.returncode == 2
    assert re.fullmatch("error: config teacher_cache: is empty; name the folder.*\n", failed.stderr), failed.stderr
