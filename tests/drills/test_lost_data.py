"""Training data that get lost or change while a run reads them: what is known of it, and the checkpoint it leaves."""

import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from NAS.data import split_halves
from tests.helpers.commands import run_command
from tests.helpers.faces import write_data
from tests.helpers.paths import ROOT
from tests.helpers.processes import RunningCommand, checkpoint_step, child_pids, run_arguments
from tests.helpers.training import CPU, small_config, train_small
from utils.datasets.face_dataset import FaceDataset
from utils.datasets.sampler import EpochSampler
from utils.datasets.shared_buffers import LOOKAHEAD
from utils.datasets.shared_loader import SharedMemoryLoader
from utils.datasets.training_data import load_training_data
from utils.errors import UserError


@pytest.fixture
def data(tiny_data, tmp_path):
    return Path(shutil.copytree(tiny_data, tmp_path / "data"))


def truncate(data: Path) -> None:
    os.truncate(data / "train.rec", (data / "train.rec").stat().st_size // 2)


def break_image(data: Path, index: int) -> None:
    """Overwrite the middle of an image, whose head stays."""
    dataset = FaceDataset(data)
    key = int(dataset.keys[index])
    at = int(dict(line.split("\t") for line in (data / "train.idx").read_text().splitlines())[str(key)])
    size = len(dataset.reader.read(key))
    with (data / "train.rec").open("r+b") as file:
        file.seek(at + 8 + 40)
        file.write(bytes(size - 40))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_failure_is_known_before_its_turn(data, workers):
    """The batches in front of it are handed out, and it is known while the one AHEAD of it is in use."""
    order = list(EpochSampler(40, 4, seed=5))
    bad = 5
    break_image(data, order[bad][1])
    loader = SharedMemoryLoader(FaceDataset(data), EpochSampler(40, 4, seed=5), workers)
    known = []
    with pytest.raises(UserError, match="not a readable image"):
        for decoded in loader.iter_epoch(0):
            assert decoded.indices.tolist() == order[len(known)]
            known.append(loader.pending_error is not None)
    assert known == [False] * (bad - LOOKAHEAD) + [True] * LOOKAHEAD
    assert loader.pending_error is None


@pytest.mark.parametrize("workers", [0, 1])
def test_a_failure_in_the_first_batches_is_raised_at_once(data, workers):
    break_image(data, list(EpochSampler(40, 4, seed=5))[1][0])
    with pytest.raises(UserError, match="not a readable image"):
        next(SharedMemoryLoader(FaceDataset(data), EpochSampler(40, 4, seed=5), workers).iter_epoch(0))


def test_batches_stay_unchanged_until_the_one_after_next_is_requested(data):
    dataset = FaceDataset(data)
    for workers in (0, 1, 2):
        before = None
        for decoded in SharedMemoryLoader(dataset, EpochSampler(40, 2, seed=5), workers).iter_epoch(0):
            if before is not None:
                images = np.empty((2, 112, 112, 3), np.uint8)
                dataset.read_into(before.indices.tolist(), images, np.empty(2, np.int64))
                np.testing.assert_array_equal(before.images.numpy(), images)
            before = decoded


def test_a_bad_image_ends_a_run_with_a_checkpoint(data, tmp_path, log_capture):
    config = small_config(tmp_path, data, "batch_size=4", "save_step=1000", "num_epoch=2")
    sampler = load_training_data(config, CPU)[0].sampler
    break_image(data, list(sampler)[6][0])  # of the seventh batch
    with pytest.raises(UserError, match="not a readable image"):
        train_small(config)
    assert checkpoint_step(tmp_path / "out") == 7 - LOOKAHEAD
    assert "the same command resumes from the last checkpoint" in log_capture.text


def test_touching_the_files_changes_nothing(data, tmp_path):
    command = [sys.executable, "-u", "train.py", *run_arguments(data, tmp_path), "num_epoch=4", "save_step=1000"]
    train_small = RunningCommand(*command)
    assert train_small.until("Global Step: 4 "), train_small.output
    os.utime(data / "train.rec")
    copy = Path(shutil.copy(data / "train.rec", data / "copy"))
    assert train_small.until("Global Step: 12 "), train_small.output
    copy.replace(data / "train.rec")  # the same bytes in another file
    assert train_small.end() == 0, train_small.output


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_file_cut_short_ends_a_run_with_a_checkpoint_and_code_2(data, tmp_path, processes):
    """By train.sh, in one process and in two, of which both must write the checkpoint."""
    output = tmp_path / "out"
    slow = ["batch_size=2", "channel=16", "num_epoch=40", "save_step=1000"]
    train_small = RunningCommand("./train.sh", *run_arguments(data, output), *slow, NPROC=processes)
    assert train_small.until("Global Step: 3 "), train_small.output
    truncate(data)
    assert train_small.end() == 2, train_small.output
    last = int(re.findall(r"Global Step: (\d+)", train_small.output)[-1])
    assert checkpoint_step(output) == last
    assert re.search(
        r"error: .*train\.rec: shrank from \d+ to \d+ bytes while in use; copy it again\n", train_small.output
    )
    assert (
        "Traceback" not in train_small.output
        and "the same command resumes from the last checkpoint" in train_small.output
    )


def test_a_bad_image_of_the_second_process_ends_both_with_a_checkpoint(data, tmp_path):
    output = tmp_path / "out"
    break_image(data, list(EpochSampler(40, 2, 1, 2))[6][0])  # of its seventh batch; the other process has none
    train_small = RunningCommand(
        "./train.sh", *run_arguments(data, output), "batch_size=2", "num_epoch=2", "save_step=1000", NPROC="2"
    )
    assert train_small.end() == 2, train_small.output
    assert (
        checkpoint_step(output) == 6
    )  # the other process learns of it after step 5, of which both have the next batch
    assert len(re.findall(r"^error: .*not a readable image", train_small.output, re.MULTILINE)) == 1, train_small.output
    assert "Traceback" not in train_small.output and "another process" not in train_small.output


def val_batches(data: Path, seed: int, batch_size: int, epoch: int, processes: int) -> list[list[int]]:
    """The images of each validation batch of a search's epoch, those of all processes together."""
    half = split_halves(FaceDataset(data).label_values.astype(int), seed).val
    sampler = EpochSampler(half, batch_size * processes, seed=seed)
    sampler.epoch = epoch
    return list(sampler)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_bad_validation_image_ends_a_search_with_a_checkpoint(tmp_path, processes):
    """In the first batch of the half's second epoch, which begins amid an epoch of the other half: 17 and 18 images."""
    data, output = write_data(tmp_path / "data", identities=7, shots=5), tmp_path / "out"

    def images_at_the_start(seed: int) -> set[int]:
        """Those that the first epoch leaves out."""
        first, second = (val_batches(data, seed, 3, epoch, processes) for epoch in (0, 1))
        return set(second[0]) - set(np.concatenate(first))

    seed = next(seed for seed in range(99) if images_at_the_start(seed))
    break_image(data, min(images_at_the_start(seed)))
    small = ["n_nodes=2", "channel=2", "search_eval=0", "batch_size=3", "save_step=1000", f"seed={seed}", "num_epoch=2"]
    train_small = RunningCommand("NAS/search.sh", *run_arguments(data, output), *small, NPROC=str(processes))
    assert train_small.end() == 2, train_small.output
    # Of 5 batches, or 2 in two processes; AHEAD of them are read ahead. The second process learns of it a step later.
    assert checkpoint_step(output) == (4 if processes == 1 else 2)
    assert len(re.findall(r"^error: .*not a readable image", train_small.output, re.MULTILINE)) == 1, train_small.output
    assert (
        "Traceback" not in train_small.output
        and "the same command resumes from the last checkpoint" in train_small.output
    )


def test_a_bad_validation_image_is_known_before_its_turn(data, tmp_path):
    break_image(data, val_batches(data, 0, 2, 0, 1)[8][1])
    small = ["n_nodes=2", "channel=2", "search_eval=0", "batch_size=2", "save_step=1000", "num_epoch=1"]
    search = [sys.executable, "NAS/search.py", *run_arguments(data, tmp_path / "out"), *small]
    failed = run_command(ROOT, *search)
    assert failed.returncode == 2 and re.fullmatch("error: .*not a readable image.*\n", failed.stderr), failed.stderr
    assert checkpoint_step(tmp_path / "out") == 5
    done = run_command(ROOT, *search, "on_bad_image=skip")
    assert done.returncode == 0 and "Resumes at step 5" in done.stdout, done.stderr


def test_a_worker_that_is_killed_leaves_a_checkpoint(data, tmp_path):
    train_small = RunningCommand(
        sys.executable, "-u", "train.py", *run_arguments(data, tmp_path), "num_epoch=400", "save_step=100000"
    )
    assert train_small.until("Global Step: 7 "), train_small.output
    for worker in child_pids(train_small.process.pid):
        os.kill(worker, 9)
    assert train_small.end() == 2, train_small.output
    assert checkpoint_step(tmp_path) == int(re.findall(r"Global Step: (\d+)", train_small.output)[-1])
    assert "a loader worker ended (Killed)" in train_small.output and "Traceback" not in train_small.output


@pytest.mark.parametrize(
    ("limit", "value", "message"),
    [(resource.RLIMIT_NOFILE, 40, "Too many open files"), (resource.RLIMIT_AS, None, "an(not|'t) allocate memory")],
    ids=["file handles", "memory"],
)
def test_too_little_for_the_workers_is_one_line(data, limit, value, message):
    code = f"""
import resource, sys
sys.path.insert(0, {str(ROOT)!r})
from utils.datasets.face_dataset import FaceDataset
from utils.datasets.sampler import EpochSampler
from utils.errors import run_cli
from utils.datasets.shared_loader import SharedMemoryLoader

def main():
    dataset = FaceDataset({str(data)!r})
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    limit = {value} or used + (8 << 20)
    resource.setrlimit({int(limit)}, (limit, limit))
    next(SharedMemoryLoader(dataset, EpochSampler(40, 2), 20).iter_epoch(0))

run_cli(main)
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 2, done.stderr
    assert re.search(rf"^error: config workers: 20 loader workers .*{message}.*; lower workers", done.stderr), (
        done.stderr
    )
    assert len(done.stderr.splitlines()) == 1, done.stderr
