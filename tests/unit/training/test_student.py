"""Training that starts from weights: student_pth, student_global_step, student_header."""

import os
import re
import sys

import pytest
import torch

from tests.helpers.commands import DEMO, run_command
from tests.helpers.faces import write_data
from tests.helpers.training import CPU, small_config, small_task
from utils.checkpoints.weights import read_weights, save_weights
from utils.errors import UserError
from utils.training.student import check_student, load_student

FRESH = ["max_steps=1", "lr=0", "save_initial=0", "workers=0"]


def start_training(demo, out, *arguments, command="train.py", **environment):
    """Trains one step at a learning rate of 0 from the demo's weights."""
    script = ["./train.sh"] if environment else [sys.executable, command]
    where = [f"output={out}", f"log_dir={out}", "student_pth=output/demo", "student_global_step=12"]
    return run_command(demo, *script, *DEMO, *where, *FRESH, *arguments, **environment)


def differing(ours, theirs) -> list[str]:
    return [key for key, value in theirs.items() if not torch.equal(ours[key], value)]


@pytest.mark.parametrize("nproc", ["1", "2"])
def test_training_starts_from_weights_with_a_new_header(demo, tmp_path, nproc):
    done = start_training(demo, tmp_path, NPROC=nproc)
    assert done.returncode == 0, done.stderr
    assert "Starts from the weights in output/demo/12backbone.pth, with a new header" in done.stdout
    weights = demo / "output" / "demo"
    ours, theirs = read_weights(tmp_path / "1backbone.pth"), read_weights(weights / "12backbone.pth")
    assert all(key.endswith(("running_mean", "running_var", "num_batches_tracked")) for key in differing(ours, theirs))
    kernels = [read_weights(tmp_path / "1header.pth"), read_weights(weights / "12header.pth")]
    assert differing(*kernels) == ["kernel"]


@pytest.mark.parametrize("header", ["replicated", "sharded"])
def test_the_header_may_come_along(demo, tmp_path, header):
    done = start_training(demo, tmp_path, "student_header=True", f"header={header}", NPROC="2")
    assert done.returncode == 0, done.stderr
    assert "12backbone.pth, with their header" in done.stdout
    assert not differing(
        read_weights(tmp_path / "1header.pth"), read_weights(demo / "output" / "demo" / "12header.pth")
    )


def test_a_file_of_weights_of_any_name_serves(demo, tmp_path):
    weights = tmp_path / "PocketNet.pth"
    weights.write_bytes((demo / "output" / "demo" / "12backbone.pth").read_bytes())
    done = start_training(demo, tmp_path / "out", f"student_pth={weights}")
    assert done.returncode == 0 and f"Starts from the weights in {weights}" in done.stdout, done.stderr


def test_what_does_not_fit_is_one_line(demo, tmp_path):
    for fields, message in (
        (["student_global_step=7"], "7backbone.pth: no such checkpoint"),
        (["n_layers=5"], "belongs to another network: .*check student_pth, student_global_step, net_name"),
        ([f"output={demo / 'output' / 'demo'}"], "config student_pth: 'output/demo' is in the output folder"),
        (
            ["output=output/demo", "student_pth=output/demo/12backbone.pth"],
            "config student_pth: 'output/demo/12backbone.pth' is in the output folder",
        ),
    ):
        failed = start_training(demo, tmp_path, *fields)
        assert failed.returncode == 2 and re.fullmatch(f"error: .*{message}.*\n", failed.stderr), failed.stderr
        assert not list(tmp_path.glob("*.pth"))


def test_a_header_of_other_classes_names_the_counts(tmp_path, tiny_data):
    config = small_config(tmp_path, tiny_data, f"student_pth={tmp_path}", "student_header=1")
    for name, module in (("backbone", small_task(config, 4).backbone), ("header", small_task(config, 4).header)):
        save_weights(tmp_path / f"0{name}.pth", module)
    check_student(config)
    task = small_task(config, 9)
    with pytest.raises(UserError, match=r"0header.pth: its header is \(16, 4\), .* = \(16, 9\); .*num_classes"):
        load_student(config, task.backbone, task.header, CPU)
    load_student(config, task.backbone, small_task(config, 4).header, CPU)


def test_weights_that_are_a_pipe_are_named(tmp_path, tiny_data):
    os.mkfifo(tmp_path / "weights.pth")
    config = small_config(tmp_path, tiny_data, f"student_pth={tmp_path / 'weights.pth'}")
    task = small_task(config, 4)
    with pytest.raises(UserError, match=r"weights\.pth: is not a regular file \(a pipe\)"):
        load_student(config, task.backbone, task.header, CPU)


def test_a_resumed_run_does_not_need_the_weights(demo, tmp_path):
    weights = tmp_path / "PocketNet.pth"
    weights.write_bytes((demo / "output" / "demo" / "12backbone.pth").read_bytes())
    assert start_training(demo, tmp_path / "out", f"student_pth={weights}").returncode == 0
    weights.unlink()
    done = start_training(demo, tmp_path / "out", f"student_pth={weights}", "max_steps=2")
    assert done.returncode == 0 and "Resumes at step 1" in done.stdout and "Starts from" not in done.stdout, done.stderr


def test_other_data_may_follow(demo, tmp_path):
    """Fine-tuning: another data set with other people."""
    data = write_data(tmp_path / "data", identities=3)
    done = start_training(demo, tmp_path / "out", f"rec={data}", "val_targets=tiny")
    assert done.returncode == 0, done.stderr
    assert read_weights(tmp_path / "out" / "1header.pth")["kernel"].shape == (32, 3)
