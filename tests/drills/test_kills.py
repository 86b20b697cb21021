"""kill -9, again and again: a run ends with the bits of one never stopped."""

import os
import random
import re
import shutil
import signal
import sys
import time

import pytest
import torch

from tests.helpers.commands import run_command
from tests.helpers.paths import ROOT
from tests.helpers.processes import RunningCommand, checkpoint_step, child_pids, run_arguments
from tests.helpers.published_files import assert_same_weights, read_weights_files


@pytest.mark.parametrize("way", ["arcface", "template", "multi-step", "search"])
def test_a_run_killed_at_any_moment_ends_with_the_same_weights(tiny_data, tmp_path, way):
    """kill -9, several times, each time started again by the same command."""
    few = ["num_epoch=3", "lr_steps=1"]
    teacher = [
        f"teacher_pth={tmp_path / 'teacher'}", "teacher_network=PocketNet", "teacher_channel=4", "teacher_n_layers=4",
        "w=10",
    ]  # fmt: skip
    command = {
        "arcface": ["train.py"],
        "template": ["train_kd.py", *teacher, "teacher_global_step=30", f"teacher_cache={tmp_path / 'cache'}"],
        "multi-step": ["train_kd.py", "--multi-step", *teacher],
        "search": ["NAS/search.py", "n_nodes=2", "channel=2", "search_eval=6"],
    }[way]
    if way in ("template", "multi-step"):
        taught = run_command(
            ROOT, sys.executable, "train.py", *run_arguments(tiny_data, tmp_path / "teacher"), *few, "seed=5"
        )
        assert taught.returncode == 0, taught.stderr
    script, *changes = command
    uncut, cut = tmp_path / "uncut", tmp_path / "cut"
    done = run_command(ROOT, sys.executable, script, *run_arguments(tiny_data, uncut), *few, *changes)
    assert done.returncode == 0, done.stderr
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    rng = random.Random(way)
    resumed = 0
    for _ in range(20):
        run = RunningCommand(sys.executable, "-u", script, *run_arguments(tiny_data, cut), *few, *changes)
        steps = rng.randint(4, 8)
        if all(run.until("Global Step") for _ in range(steps)):
            time.sleep(rng.random() / 5)  # anywhere within a step, or while a checkpoint is written
            run.process.kill()
        run.end()
        resumed += "Resumes at step" in run.output
        if run.process.returncode == 0:
            break
    assert run.process.returncode == 0 and resumed >= 2, run.output
    if way == "search":
        assert (cut / "genotypes.jsonl").read_text() == (uncut / "genotypes.jsonl").read_text()
        ends = [{p.name: torch.load(p, weights_only=True) for p in f.glob("*supernet.pth")} for f in (uncut, cut)]
        assert len(ends[0]) == 3
        assert_same_weights(*ends)
    else:
        assert_same_weights(read_weights_files(uncut), read_weights_files(cut))


def test_twenty_kills_of_one_process_lose_nothing(tiny_data, tmp_path):
    """kill -9 of either of two processes at random; torchrun starts both again."""
    few = ["num_epoch=30", "lr_steps=9"]  # 150 steps
    uncut, cut = tmp_path / "uncut", tmp_path / "cut"
    done = run_command(ROOT, "./train.sh", *run_arguments(tiny_data, uncut), *few, NPROC="2", OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    run = RunningCommand("./train.sh", *run_arguments(tiny_data, cut), *few, NPROC="2", MAX_RESTARTS="20")
    rng = random.Random(0)
    for _ in range(20):
        for _ in range(rng.randint(1, 4)):
            assert run.until("Global Step"), run.output
        time.sleep(rng.random() / 10)
        os.kill(rng.choice(child_pids(run.process.pid)), signal.SIGKILL)
        before = checkpoint_step(cut)
        assert run.until("Resumes at step"), run.output
        resumed = int(re.findall(r"Resumes at step (\d+)", run.output)[-1])
        last = max(int(step) for step in re.findall(r"Global Step: (\d+)", run.output))
        # save_step=2: at most the steps since the last file, and those while the next one was being written.
        assert before <= resumed and last - resumed <= 2 * 2, run.output
    assert run.end() == 0, run.output
    assert_same_weights(read_weights_files(uncut), read_weights_files(cut))
