"""Exact resume: the content of checkpoint.pth, and the step at which a run resumes."""

import errno
import os
import signal
from functools import partial
from pathlib import Path

import pytest
import torch

from config.base import Config
from tests.helpers.published_files import assert_same_weights, read_weights_files
from tests.helpers.training import CPU, small_config, small_task, spawn_ranks, train_sharded, train_small
from utils.checkpoints.run_file import FORMAT_VERSION, REQUIRED_KEYS, read_checkpoint, write_checkpoint
from utils.checkpoints.snapshot import cpu_snapshot
from utils.datasets.sampler import EpochSampler
from utils.datasets.training_data import load_training_data
from utils.distillation.schedule import teacher_file_per_epoch
from utils.distributed.runtime_errors import translate_runtime_errors
from utils.distributed.shutdown import GracefulShutdown, Requests
from utils.errors import UserError
from utils.training.arcface_task import ArcFaceTask
from utils.training.checkpointing.progress import TrainProgress, compute_epoch_end_steps, progress_from_checkpoint
from utils.training.checkpointing.resume import ResumePoint, resolve_resume
from utils.training.checkpointing.step_ranges import StepRanges
from utils.training.engine import train


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_run_stopped_at_any_step_ends_with_the_same_weights(tmp_path, tiny_data, precision):
    overrides = ["num_epoch=3", "lr_steps=2", f"precision={precision}", "log_step=4", "s=16", "channel=1"]
    _, uncut = train_small(small_config(tmp_path / "uncut", tiny_data, *overrides))
    for stop in (2, 5, 7, 11):  # the middle of an epoch, the end of one, the middle of the next two
        train_small(small_config(tmp_path / "cut", tiny_data, *overrides, f"max_steps={stop}"))
    step, cut = train_small(small_config(tmp_path / "cut", tiny_data, *overrides))
    assert step == 15
    ours = read_weights_files(tmp_path / "cut" / "out")
    assert_same_weights(
        read_weights_files(tmp_path / "uncut" / "out"),
        {name: ours[name] for name in read_weights_files(tmp_path / "uncut" / "out")},
    )
    for mine, other in zip(cut.header.parameters(), uncut.header.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_the_log_after_a_resume_has_the_losses_of_a_run_never_stopped(tmp_path, tiny_data, log_capture):
    """Meters are restored: the first line after the resume is the mean of steps before and after it."""
    overrides = ["num_epoch=2", "log_step=10"]
    train_small(small_config(tmp_path / "uncut", tiny_data, *overrides))
    (line,) = [record.message for record in log_capture.records if "Global Step: 10" in record.message]
    log_capture.clear()
    config = small_config(tmp_path / "cut", tiny_data, *overrides, "save_step=4")
    with pytest.raises(ZeroDivisionError):
        stop_at(7, config)
    train_small(config)
    (again,) = [record.message for record in log_capture.records if "Global Step: 10" in record.message]
    assert again.split("Loss")[1].split("Required")[0] == line.split("Loss")[1].split("Required")[0]
    assert "Resumes at step 5: epoch 1" in log_capture.text


def stop_at(step, config):
    """Trains until an error in the given step."""

    class Failing(ArcFaceTask):
        calls = 0

        def __call__(self, batch):
            Failing.calls += 1
            if Failing.calls == step:
                raise ZeroDivisionError
            return super().__call__(batch)

    Failing.__name__ = ArcFaceTask.__name__
    loader, num_classes = load_training_data(config, CPU)
    train(small_task(config, num_classes, task_type=Failing), loader, config, CPU)


# -------------------------------------------------------------------------------------------------- the order of images


def test_the_rest_of_an_epoch_is_dealt_to_another_number_of_processes():
    def taken(size, seen, steps):
        parts = []
        for rank in range(size):
            sampler = EpochSampler(96, 4, rank, size, seed=5)
            sampler.epoch, sampler.samples_seen = 2, seen
            batches = list(sampler)
            assert len(batches) == sampler.num_batches(seen)
            parts.append(batches[:steps])
        return [index for rank in parts for batch in rank for index in batch]

    images = taken(2, 0, 3)  # 24
    images += taken(1, 24, 6)  # 24
    images += taken(2, 48, 6)  # 48
    assert sorted(images) == list(range(96))


def test_any_number_of_steps_takes_no_memory(tmp_path, tiny_data):
    config = small_config(tmp_path, tiny_data, "max_steps=1000000000000", "num_epoch=100000")
    ends = compute_epoch_end_steps(config, EpochSampler(40, 8), TrainProgress(7, StepRanges.from_list([5]), 16))
    assert (len(ends), ends[0], ends[1], ends[-2], ends[-1]) == (2 * 10**11, 5, 10, 10**12 - 5, 10**12)
    assert (ends[3], ends[-4], ends[1:4]) == (20, 10**12 - 15, [10, 15, 20])
    with pytest.raises(IndexError):
        ends[2 * 10**11]
    config.max_steps = 0
    config.num_epoch = 10**9
    assert compute_epoch_end_steps(config, EpochSampler(40, 8))[-1] == 5 * 10**9
    config.teacher_pth, config.max_steps = str(tmp_path), 10**9
    with pytest.raises(UserError, match="config max_steps: 200,000,000 epochs are too many"):
        teacher_file_per_epoch(config, compute_epoch_end_steps(config, EpochSampler(40, 8)))


def test_ends_of_a_million_epochs_fit_a_checkpoint(tmp_path):
    """Epochs of equal length, then of another length, as with another number of processes."""
    progress = TrainProgress(0)
    for _ in range(3):
        progress = TrainProgress(progress.step + 5, progress.epoch_end_steps).after_epoch()
    million = StepRanges(range(5, 10**7, 5), range(10**7 + 3, 2 * 10**7, 3))
    for ends in (progress.epoch_end_steps, million, million.append(3 * 10**7), StepRanges()):
        state = dict.fromkeys(REQUIRED_KEYS) | {
            "version": FORMAT_VERSION,
            "position": {"step": 3 * 10**7, "ends": ends.to_list(), "seen": 0},
        }
        write_checkpoint(tmp_path, 1, state)
        found = progress_from_checkpoint(read_checkpoint(tmp_path))
        assert found.epoch == len(ends) and found.epoch_end_steps.ranges == ends.ranges
    assert progress.epoch_end_steps.to_list() == [[5, 16, 5]] and million.append(3 * 10**7).to_list()[2:] == [3 * 10**7]


def test_ends_in_older_checkpoints_are_numbers():
    for numbers in ([], [5], [5, 10, 15], [3, 8, 13, 13, 15, 17, 16, 40], list(range(0, 10**6, 3))):
        ends = StepRanges.from_list(numbers)
        assert (list(ends), len(ends), ends[-3:]) == (numbers, len(numbers), numbers[-3:]) and len(ends.ranges) < 6
        assert list(StepRanges.from_list(ends.to_list())) == numbers
    for wrong in ([-1], [True], [1.0], [2**63], [[1, 2]], [[1, 2, 0]], ["a"], [[0, 2**63 - 1, 1]] * 2, 5):
        with pytest.raises((ValueError, TypeError)):
            StepRanges.from_list(wrong)


def test_published_files_of_a_step_beyond_the_run_are_looked_for_first(tmp_path, tiny_data, log_capture):
    config = small_config(tmp_path, tiny_data, "num_epoch=2", "resume=1", "global_step=1000000000")
    loader, _ = load_training_data(config, CPU)
    (tmp_path / "out").mkdir()
    for part in ("header", "backbone"):
        with pytest.raises(UserError, match=f"1000000000{part}.pth: no such checkpoint"):
            resolve_resume(config, ArcFaceTask, loader, CPU)
        (tmp_path / "out" / f"1000000000{part}.pth").touch()
    assert resolve_resume(config, ArcFaceTask, loader, CPU).progress.is_finished(config)


def test_epochs_end_where_the_steps_of_the_processes_there_are_end_them(tmp_path, tiny_data):
    config = small_config(tmp_path, tiny_data, "num_epoch=3")
    alone, pair = EpochSampler(40, 4), EpochSampler(40, 4, 0, 2)
    assert list(compute_epoch_end_steps(config, alone)) == [10, 20, 30]
    half_way = TrainProgress(13, StepRanges.from_list([10]), 12)  # alone until now
    assert list(compute_epoch_end_steps(config, alone, half_way)) == [10, 20, 30]
    assert list(compute_epoch_end_steps(config, pair, half_way)) == [10, 16, 21]  # 28 images left: 3 steps of 8; then 5
    assert list(compute_epoch_end_steps(config, pair, TrainProgress(21, StepRanges.from_list([10, 16, 21])))) == [
        10,
        16,
        21,
    ]
    config.max_steps = 18
    assert list(compute_epoch_end_steps(config, pair, half_way)) == [10, 16, 18]
    assert list(compute_epoch_end_steps(config, alone)) == [10, 18]


class Recording(ArcFaceTask):
    """Records the indices and the learning rate of each batch."""

    def __init__(self, *networks):
        super().__init__(*networks)
        self.samples_seen = []

    def on_train_start(self, optimizer):
        self.optimizer = optimizer

    def __call__(self, batch):
        self.samples_seen.append((batch.indices.tolist(), self.optimizer.param_groups[0]["lr"]))
        return super().__call__(batch)


Recording.__name__ = ArcFaceTask.__name__


def _record(world, folder, data, *overrides):
    config = small_config(folder, data, "batch_size=4", "lr=0.1", *overrides)
    step, task = train_small(config, world=world, task_type=Recording)
    torch.save((step, task.samples_seen), folder / f"{config.max_steps}-{world.rank}.pt")


def test_two_then_one_then_two_processes_see_every_image_once_at_the_right_rate(tmp_path, tiny_data):
    for size, last in ((2, 2), (1, 5), (2, 0)):
        spawn_ranks(_record, tmp_path, tiny_data, f"max_steps={last}", "num_epoch=1", size=size)
    images = []
    for size, last in ((2, 2), (1, 5), (2, 0)):
        for rank in range(size):
            _, seen = torch.load(tmp_path / f"{last}-{rank}.pt")
            images += [index for indices, _ in seen for index in indices]
            assert [rate for _, rate in seen] == pytest.approx([0.1 * 4 * size / 512] * len(seen))
    assert len(images) == len(set(images)) == 36  # 16, 12, and 8 of the 12 left, as 4 are less than a step of two
    assert torch.load(tmp_path / "0-0.pt")[0] == 6


def test_a_change_of_the_number_of_processes_is_logged(tmp_path, tiny_data, log_capture):
    spawn_ranks(_record, tmp_path, tiny_data, "max_steps=2", "num_epoch=1")
    train_small(small_config(tmp_path, tiny_data, "batch_size=4", "lr=0.1", "num_epoch=1"))
    assert "Changed: the number of processes was 2, is 1: 4 images a step" in log_capture.text
    assert "Changed: config max_steps was 2, is 0" in log_capture.text


# --------------------------------------------------------------------------------------------------- where a run begins


def test_published_files_alone_give_weights_epoch_and_rate(tmp_path, tiny_data, log_capture):
    config = small_config(tmp_path, tiny_data, "num_epoch=2", "lr_steps=1", "lr=0.1")
    train_small(config)
    out = tmp_path / "out"
    saved = read_weights_files(out)
    for path in [*out.glob("checkpoint*"), *out.glob("10*")]:
        path.unlink()
    config = small_config(tmp_path, tiny_data, "num_epoch=2", "lr_steps=1", "lr=0", "global_step=5", "resume=1")
    step, task = train_small(config, task_type=Recording)
    assert step == 10 and len(task.samples_seen) == 5  # the second epoch alone
    assert "Resumes from the files of step 5: epoch 1, step 0 of its 5; they hold no momentum" in log_capture.text
    # At a rate of 0 the weights are those of step 5, of the backbone and of the header.
    for part, module in (("backbone", task.backbone), ("header", task.header)):
        for name, parameter in module.named_parameters():
            assert torch.equal(parameter, saved[f"5{part}.pth"][name])
    # And at that of the config it is the second epoch's.
    for path in [*out.glob("checkpoint*"), *out.glob("10*")]:
        path.unlink()
    config = small_config(tmp_path, tiny_data, "num_epoch=2", "lr_steps=1", "lr=0.1", "global_step=5", "resume=1")
    _, task = train_small(config, task_type=Recording)
    assert [rate for _, rate in task.samples_seen] == pytest.approx([0.1 * 8 / 512 * 0.1] * 5)


def test_a_step_within_an_epoch_resumes_within_it(tmp_path, tiny_data, log_capture):
    config = small_config(tmp_path, tiny_data, "max_steps=7", "num_epoch=2")
    train_small(config)
    for path in (tmp_path / "out").glob("checkpoint*"):
        path.unlink()
    step, task = train_small(
        small_config(tmp_path, tiny_data, "num_epoch=2", "global_step=7", "resume=1"), task_type=Recording
    )
    assert step == 10 and len(task.samples_seen) == 3
    assert "epoch 1, step 2 of its 5" in log_capture.text
    assert "Step 7 ends no epoch of 5 steps" in log_capture.text


def test_resume_1_goes_back_once(tmp_path, tiny_data, log_capture):
    """It resumes at the named step, though checkpoint.pth is later; the same command then resumes its own run."""
    train_small(small_config(tmp_path, tiny_data, "max_steps=7", "num_epoch=2"))
    back = ["num_epoch=2", "global_step=5", "resume=1"]
    step, task = train_small(small_config(tmp_path, tiny_data, *back, "max_steps=8"), task_type=Recording)
    assert step == 8 and len(task.samples_seen) == 3 and "Resumes from the files of step 5" in log_capture.text
    assert read_checkpoint(tmp_path / "out")["position"]["step"] == 8
    assert torch.load(tmp_path / "out" / "old-1" / "checkpoint.pth")["position"]["step"] == 7
    # What is left is of this run: the step it began with, and its own.
    assert {path.name for path in (tmp_path / "out").glob("*backbone.pth")} == {"5backbone.pth", "8backbone.pth"}
    assert (tmp_path / "out" / "old-1" / "7backbone.pth").is_file()
    step, task = train_small(small_config(tmp_path, tiny_data, *back), task_type=Recording)
    assert step == 10 and len(task.samples_seen) == 2 and "Resumes at step 8" in log_capture.text


def test_a_diverged_run_resumes_from_before_it(tmp_path, tiny_data):
    """No checkpoint has weights from the bad steps, so a lower lr can help as the error says."""
    config = small_config(tmp_path, tiny_data, "num_epoch=2", "max_steps=6", "save_step=1")
    train_small(config)
    wild = ["num_epoch=9", "save_step=2", "max_bad_steps=5", "log_step=50", "lr=1e30", "clip_norm=0", "weight_decay=0"]
    with pytest.raises(UserError, match="not finite in 5 steps in a row"):
        train_small(small_config(tmp_path, tiny_data, *wild))
    assert read_checkpoint(tmp_path / "out")["position"]["step"] == 6
    assert train_small(small_config(tmp_path, tiny_data, "max_steps=8", "lr=0.01", "log_step=1"))[0] == 8


def test_the_last_files_are_written_though_no_step_is_left(tmp_path, tiny_data):
    """The resumed run has more images per step than the last epoch has left."""
    train_small(small_config(tmp_path, tiny_data, "batch_size=4", "max_steps=9", "num_epoch=1"))
    (tmp_path / "out" / "9backbone.pth").unlink()
    step, _ = train_small(small_config(tmp_path, tiny_data, "batch_size=8", "num_epoch=1"))
    assert step == 9 and "9backbone.pth" in read_weights_files(tmp_path / "out")
    progress = read_checkpoint(tmp_path / "out")["position"]
    assert (progress["ends"], progress["seen"]) == ([9], 0)


def test_other_data_of_the_same_size_are_logged(tmp_path, tiny_data, log_capture):
    from tests.helpers.faces import write_data

    train_small(small_config(tmp_path, tiny_data, "max_steps=2"))
    train_small(small_config(tmp_path, write_data(tmp_path / "other", seed=9), "max_steps=3"))
    assert "are not those that the run began with" in log_capture.text


def test_resume_0_starts_over_and_keeps_the_old_checkpoint(tmp_path, tiny_data, log_capture):
    train_small(small_config(tmp_path, tiny_data, "max_steps=2"))
    _, task = train_small(small_config(tmp_path, tiny_data, "max_steps=3", "resume=0"), task_type=Recording)
    out = tmp_path / "out"
    assert len(task.samples_seen) == 3 and f"are now in {out / 'old-1'}" in log_capture.text
    assert read_checkpoint(out)["position"]["step"] == 3
    assert torch.load(out / "old-1" / "checkpoint.pth")["position"]["step"] == 2


def test_files_of_earlier_runs_are_set_aside_and_none_is_lost(tmp_path, tiny_data):
    """eval.py and multi-step distillation read every {step}backbone.pth in the folder as a file of this run."""
    out = tmp_path / "out"
    out.mkdir()
    for steps in (4, 3, 2):
        config = small_config(tmp_path, tiny_data, f"max_steps={steps}", "resume=0")
        loader, num_classes = load_training_data(config, CPU)
        resume_point = resolve_resume(config, ArcFaceTask, loader, CPU)
        begin = partial((out / "config.json").write_text, str(steps))
        train(small_task(config, num_classes), loader, config, CPU, resume_point=resume_point, on_begin=begin)
        (out / "results.json").write_text(str(steps))
    published = {folder.name: {path.name for path in folder.glob("*backbone.pth")} for folder in (out, *out.glob("o*"))}
    assert published == {"out": {"2backbone.pth"}, "old-1": {"4backbone.pth"}, "old-2": {"3backbone.pth"}}
    for folder, steps in ((out, "2"), (out / "old-1", "4"), (out / "old-2", "3")):
        assert (folder / "config.json").read_text() == (folder / "results.json").read_text() == steps
    # Published files without checkpoint.pth, as a user may copy them, are set aside too.
    for path in out.glob("checkpoint*"):
        path.unlink()
    train_small(small_config(tmp_path, tiny_data, "max_steps=1"))
    assert {path.name for path in out.glob("*backbone.pth")} == {"1backbone.pth"}
    assert (out / "old-3" / "2backbone.pth").is_file()


@pytest.mark.parametrize(("run_id", "steps"), [("ours", 1), ("another", 3)])
def test_a_run_with_resume_0_resumes_when_torchrun_restarts_it(tmp_path, tiny_data, monkeypatch, run_id, steps):
    """Otherwise every restart with --resume 0 would start over."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "ours")
    train_small(small_config(tmp_path, tiny_data, "max_steps=2", "resume=0"))
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", run_id)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    _, task = train_small(small_config(tmp_path, tiny_data, "max_steps=3", "resume=0"), task_type=Recording)
    assert len(task.samples_seen) == steps


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["resume=1"], "config resume: .* holds no checkpoint.pth; name a step"),
        (["resume=1", "global_step=4"], "4header.pth: no such checkpoint; .*there is none"),
        (["resume=1", "global_step=1000000000"], "1000000000header.pth: no such checkpoint"),
    ],
)
def test_resume_without_files_is_refused(tmp_path, tiny_data, overrides, message):
    with pytest.raises(UserError, match=message):
        train_small(small_config(tmp_path, tiny_data, *overrides))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["seed=3"], "config seed: 3, but the run .* shuffles its images with 0"),
        (["embedding_size=32"], r"checkpoint.pth \(backbone\): .* has shape .*, but the config needs "),
        (["genotype=softmax_cifar10"], r"checkpoint.pth \(backbone\): belongs to another network"),
    ],
)
def test_another_run_is_not_resumed(tmp_path, tiny_data, overrides, message):
    train_small(small_config(tmp_path, tiny_data, "max_steps=2"))
    with pytest.raises(UserError, match=message):
        train_small(small_config(tmp_path, tiny_data, "max_steps=4", *overrides))


def test_another_kind_of_run_or_other_data_are_not_resumed(tmp_path, tiny_data):
    from tests.helpers.faces import write_data
    from utils.distillation.task import DistillTask

    config = small_config(tmp_path, tiny_data, "max_steps=2")
    train_small(config)
    with pytest.raises(UserError, match=r"config output: .* is of another kind of run \(ArcFaceTask\)"):
        resolve_resume(config, DistillTask, load_training_data(config, CPU)[0], CPU)
    other = small_config(tmp_path, write_data(tmp_path / "more", shots=12), "max_steps=4")
    with pytest.raises(UserError, match=r"config rec: the run in .* was on 40 images, but here are 48"):
        train_small(other)


# ------------------------------------------------------------------------------------------------------------ the files


def state(step, size=1000):
    progress = {"step": step, "ends": [], "seen": 0}
    return dict.fromkeys(REQUIRED_KEYS) | {
        "version": FORMAT_VERSION,
        "position": progress,
        "weights": torch.full((size,), step),
    }


def test_the_last_checkpoints_are_kept(tmp_path):
    for step in (2, 4, 6, 8):
        write_checkpoint(tmp_path, 3, state(step))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["checkpoint.4.pth", "checkpoint.6.pth", "checkpoint.8.pth", "checkpoint.pth"]
    assert read_checkpoint(tmp_path)["position"]["step"] == 8
    write_checkpoint(tmp_path, 1, state(9))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.9.pth", "checkpoint.pth"]


def test_a_disk_without_links_has_copies(tmp_path, monkeypatch):
    def refused(self, target):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refused)
    for step in (2, 4):
        write_checkpoint(tmp_path, 1, state(step))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.4.pth", "checkpoint.pth"]
    assert read_checkpoint(tmp_path)["position"]["step"] == 4


def test_a_damaged_checkpoint_is_logged_and_the_one_before_is_read(tmp_path, log_capture):
    for step in (2, 4):
        write_checkpoint(tmp_path, 2, state(step))
    intact = (tmp_path / "checkpoint.pth").read_bytes()
    for damage in (intact[: len(intact) // 2], intact[:1500] + bytes([intact[1500] ^ 1]) + intact[1501:], b""):
        (tmp_path / "checkpoint.pth").write_bytes(damage)  # checkpoint.4.pth is another name of it
        log_capture.clear()
        assert read_checkpoint(tmp_path)["position"]["step"] == 2
        assert "checkpoint.4.pth: " in log_capture.text
    (tmp_path / "checkpoint.2.pth").write_bytes(b"")
    with pytest.raises(UserError, match="there is no other checkpoint: --resume 0 starts over"):
        read_checkpoint(tmp_path)
    assert read_checkpoint(tmp_path / "nowhere") is None


@pytest.mark.parametrize(
    ("names", "value"),
    [
        (("backbone", "stem.0.weight"), torch.nan),
        (("header", "kernel"), torch.inf),
        (("optimizer", "header", "momentum_buffer", "kernel"), -torch.inf),
        (("ranks", 1, "buffers", "torch.float32"), torch.nan),
        (("task", "weights"), torch.nan),
    ],
)
def test_a_non_finite_checkpoint_is_logged_and_the_one_before_is_read(tmp_path, tiny_data, log_capture, names, value):
    train_small(small_config(tmp_path, tiny_data, "max_steps=1"))
    found = read_checkpoint(tmp_path / "out") | {"task": {"weights": torch.ones(3)}}
    found["ranks"] = [found["ranks"][0], cpu_snapshot(found["ranks"][0])]
    write_checkpoint(tmp_path, 2, found)
    part = found
    for name in names:
        part = part[name]
    part.view(-1)[-1] = value
    found["position"]["step"] = 2
    write_checkpoint(tmp_path, 2, found)
    assert read_checkpoint(tmp_path)["position"]["step"] == 1
    assert f"checkpoint.pth: {'/'.join(map(str, names))} is not finite" in log_capture.text
    (tmp_path / "checkpoint.1.pth").unlink()
    with pytest.raises(UserError, match=r"is not finite; there is no other checkpoint: --resume 0 starts over"):
        read_checkpoint(tmp_path)


def test_a_checkpoint_that_is_a_pipe_is_logged(tmp_path, log_capture):
    write_checkpoint(tmp_path, 2, state(3, size=20))
    (tmp_path / "checkpoint.pth").unlink()
    os.mkfifo(tmp_path / "checkpoint.pth")
    assert read_checkpoint(tmp_path)["position"]["step"] == 3
    assert "checkpoint.pth: is not a regular file (a pipe)" in log_capture.text
    (tmp_path / "checkpoint.3.pth").unlink()
    with pytest.raises(
        UserError, match=r"is not a regular file .*; there is no other checkpoint: --resume 0 starts over"
    ):
        read_checkpoint(tmp_path)


def test_every_changed_byte_of_a_checkpoint_is_noticed_or_harmless(tmp_path):
    """Either the weights are read as written, or an error is raised."""
    sound = state(3, size=20)
    write_checkpoint(tmp_path, 1, sound)
    (tmp_path / "checkpoint.3.pth").unlink()
    path = tmp_path / "checkpoint.pth"
    intact = path.read_bytes()
    noticed = 0
    for at in range(len(intact)):
        path.write_bytes(intact[:at] + bytes([intact[at] ^ 0x55]) + intact[at + 1 :])
        try:
            found = read_checkpoint(tmp_path)
        except UserError:
            noticed += 1
        else:
            assert torch.equal(found["weights"], sound["weights"]) and found["position"]["step"] == 3
    assert noticed > 0.5 * len(intact)


def test_the_state_of_many_processes_is_read_again(tmp_path, tiny_data):
    train_small(small_config(tmp_path, tiny_data, "max_steps=1"))
    found = read_checkpoint(tmp_path / "out")
    write_checkpoint(tmp_path, 1, found | {"ranks": [cpu_snapshot(found["ranks"][0]) for _ in range(256)]})
    assert len(read_checkpoint(tmp_path)["ranks"]) == 256


def test_a_run_stopped_at_its_last_step_writes_its_last_files(tmp_path, tiny_data, monkeypatch):
    monkeypatch.setattr(GracefulShutdown, "agreed_requests", lambda self, log_line=False: Requests(signal.SIGTERM))
    with pytest.raises(SystemExit) as ended:
        train_small(small_config(tmp_path, tiny_data, "max_steps=2"))
    assert ended.value.code == 143 and read_checkpoint(tmp_path / "out")["position"]["step"] == 1
    step, _ = train_small(small_config(tmp_path, tiny_data, "max_steps=2"))
    assert step == 2 and "2backbone.pth" in read_weights_files(tmp_path / "out")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("DataLoader worker (pid 7) is killed by signal: Killed. ", r"a loader worker ended \(Killed\)"),
        ("[gloo/transport/tcp/unbound_buffer.cc:1] Timed out waiting 9ms for recv", "has not answered for 1800 s"),
        ("[gloo/transport/tcp/pair.cc:1] Connection closed by peer", "another process ended in the middle"),
        ("Caught RuntimeError in DataLoader worker process 0. Original Traceback", None),
        ("CUDA error: the launch timed out and was terminated", None),
        ("System call (e.g. socket, malloc) or external library call failed", None),
    ],
)
def test_failures_of_other_processes_are_translated_and_others_are_raised(text, message):
    config = Config(timeout=1800, resume="auto")
    with pytest.raises(UserError if message else RuntimeError, match=message), translate_runtime_errors(config):
        raise RuntimeError(text)


def test_the_resume_hint_leaves_out_resume_0():
    config = Config(timeout=1800, resume="0")
    with (
        pytest.raises(UserError, match="the same command, without --resume 0, resumes"),
        translate_runtime_errors(config),
    ):
        raise RuntimeError("[gloo/transport/tcp/pair.cc:1] Connection closed by peer")


def test_fp16_resumes_a_run_without_a_scaler(tmp_path, tiny_data):
    train_small(small_config(tmp_path, tiny_data, "max_steps=1"))
    assert train_small(small_config(tmp_path, tiny_data, "max_steps=2", "precision=fp16"))[0] == 2


def test_a_run_starts_at_its_beginning(tmp_path, tiny_data):
    config = small_config(tmp_path, tiny_data)
    assert resolve_resume(config, ArcFaceTask, load_training_data(config, CPU)[0], CPU) == ResumePoint()


# --------------------------------------------------------------------------------------------------- the sharded header


@pytest.mark.parametrize("rate", [1.0, 0.75])
def test_a_sharded_header_resumes_to_the_bit(tmp_path, tiny_data, rate):
    fields = ["header=sharded", f"sample_rate={rate}"]
    spawn_ranks(train_sharded, tmp_path / "uncut", tiny_data, *fields)
    spawn_ranks(train_sharded, tmp_path / "cut", tiny_data, *fields, "max_steps=7")
    spawn_ranks(train_sharded, tmp_path / "cut", tiny_data, *fields)
    ours = read_weights_files(tmp_path / "cut" / "out")
    ours = {name: ours[name] for name in read_weights_files(tmp_path / "uncut" / "out")}
    assert_same_weights(read_weights_files(tmp_path / "uncut" / "out"), ours)
    kernel = ours["10header.pth"]
    assert list(kernel) == ["kernel"] and kernel["kernel"].shape == (16, 4)


def test_a_sharded_run_resumes_with_a_replicated_header_and_on_other_processes(tmp_path, tiny_data):
    spawn_ranks(train_sharded, tmp_path, tiny_data, "header=sharded", "max_steps=3")
    saved = read_weights_files(tmp_path / "out")["3header.pth"]["kernel"]
    for size, header in ((1, "replicated"), (4, "sharded"), (1, "sharded")):
        step = read_checkpoint(tmp_path / "out")["position"]["step"]
        spawn_ranks(train_sharded, tmp_path, tiny_data, f"header={header}", f"max_steps={step + 1}", "lr=0", size=size)
        assert torch.equal(read_weights_files(tmp_path / "out")[f"{step + 1}header.pth"]["kernel"], saved)


def test_published_files_of_a_sharded_header(tmp_path, tiny_data):
    spawn_ranks(train_sharded, tmp_path, tiny_data, "header=sharded", "max_steps=3")
    for path in (tmp_path / "out").glob("checkpoint*"):
        path.unlink()
    saved = read_weights_files(tmp_path / "out")["3header.pth"]["kernel"]
    spawn_ranks(
        train_sharded, tmp_path, tiny_data, "header=sharded", "max_steps=4", "lr=0", "resume=1", "global_step=3"
    )
    assert torch.equal(read_weights_files(tmp_path / "out")["4header.pth"]["kernel"], saved)
