"""Non-finite steps change nothing, are counted across resumes, and end a run after too many in a row."""

import json

import pytest
import torch

from tests.helpers.training import small_config, small_task, spawn_ranks, train_small
from utils.checkpoints.run_file import read_checkpoint
from utils.checkpoints.snapshot import cpu_snapshot
from utils.checkpoints.weights import load_weights
from utils.datasets.training_data import load_training_data
from utils.distributed.collectives import all_gather_rows
from utils.errors import UserError
from utils.losses.header import make_header
from utils.training.arcface_task import ArcFaceTask
from utils.training.engine import train


def failing(steps, of=lambda loss: loss * torch.nan, first=1):
    """Returns an ArcFace task type that applies `of` to the loss of some steps and records the state before each."""

    class Failing(ArcFaceTask):
        def __init__(self, *networks):
            super().__init__(*networks)
            self.before = []

        def on_train_start(self, optimizer):
            self.optimizer = optimizer

        def __call__(self, batch):
            moments = [state["momentum_buffer"] for state in self.optimizer.state.values()]
            networks = [self.backbone.state_dict(), self.header.state_dict(), {"momentum": moments}]
            self.before.append(cpu_snapshot({key: value for part in networks for key, value in part.items()}))
            named = super().__call__(batch)
            return {"Loss": of(named["Loss"])} if first - 1 + len(self.before) in steps else named

    Failing.__name__ = ArcFaceTask.__name__
    return Failing


def changed(one, other) -> list[str]:
    """Returns the keys of the values that differ."""
    pairs = {key: (one[key], other[key]) for key in one if key != "momentum"}
    pairs |= {f"momentum {i}": pair for i, pair in enumerate(zip(one["momentum"], other["momentum"], strict=True))}
    return [key for key, (a, b) in pairs.items() if not torch.equal(a, b)]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_bad_step_changes_nothing(tmp_path, tiny_data, log_capture, precision):
    config = small_config(
        tmp_path, tiny_data, "max_steps=8", "log_step=4", f"precision={precision}", "s=8", "channel=1"
    )
    step, task = train_small(config, task_type=failing([3]))
    assert step == 8
    states = task.before
    # num_batches_tracked is a count of forward passes, which no computation reads
    assert [key for key in changed(states[2], states[3]) if "num_batches" not in key] == []
    assert any("running_mean" in key for key in changed(states[3], states[4]))
    assert "not finite in 1 steps, the last is step 3: skipped (1 so far)" in log_capture.text
    assert "Loss nan" not in log_capture.text


def test_the_count_continues_after_a_resume_and_many_in_a_row_end_the_run(tmp_path, tiny_data, log_capture):
    fields = ["num_epoch=9", "max_bad_steps=6"]
    train_small(small_config(tmp_path, tiny_data, *fields, "max_steps=4"), task_type=failing([2]))
    train_small(small_config(tmp_path, tiny_data, *fields, "max_steps=7"), task_type=failing([5, 6], first=5))
    assert "the last is step 6: skipped (3 so far)" in log_capture.text
    with pytest.raises(UserError, match=r"not finite in 6 steps in a row, 9 to 14 \(learning rate"):
        train_small(small_config(tmp_path, tiny_data, *fields), task_type=failing(range(9, 99), first=8))
    kept = json.loads((tmp_path / "out" / "bad_steps.json").read_text())["keys"]
    assert list(kept) == [str(step) for step in range(9, 15)]
    assert all(len(set(keys)) == 8 for keys in kept.values())
    third_epoch = {key for step in ("11", "12", "13", "14") for key in kept[step]}
    assert len(third_epoch) == 32  # of its 40 images, each once


def test_a_run_whose_last_step_is_bad_ends_so_and_keeps_the_checkpoint_before(tmp_path, tiny_data):
    fields = ["num_epoch=2", "max_steps=8", "save_step=1"]
    with pytest.raises(UserError, match=r"not finite in 2 steps in a row, 7 to 8 \(learning rate .*; lower lr"):
        train_small(small_config(tmp_path, tiny_data, *fields), task_type=failing([7, 8]))
    assert read_checkpoint(tmp_path / "out")["position"]["step"] == 6
    load_weights(
        small_task(small_config(tmp_path, tiny_data), 4).backbone, tmp_path / "out" / "8backbone.pth"
    )  # finite
    assert train_small(small_config(tmp_path, tiny_data, *fields))[0] == 8


HUGE_RATE = ["num_epoch=2", "lr=1e308", "lr_steps="]


@pytest.mark.parametrize("steps", [1, 5])
def test_weights_that_are_not_finite_are_not_published(tmp_path, tiny_data, steps):
    """In the first step loss and gradient are finite, and only the updated weights are not."""
    with pytest.raises(UserError, match=rf"^{steps}header\.pth/kernel is not finite after step {steps}: .*lower lr"):
        train_small(small_config(tmp_path, tiny_data, *HUGE_RATE, f"max_steps={steps}"))
    assert [path.name for path in (tmp_path / "out").glob("*.pth")] == []


def test_a_state_that_is_not_finite_is_not_written_and_the_last_good_one_stays(tmp_path, tiny_data):
    train_small(small_config(tmp_path, tiny_data, "num_epoch=2", "max_steps=3"))
    with pytest.raises(UserError, match=r"^backbone/stem.* is not finite after step 4: "):
        train_small(small_config(tmp_path, tiny_data, *HUGE_RATE, "save_step=1"))
    assert sorted(path.name for path in (tmp_path / "out").glob("*.pth")) == [
        "3backbone.pth", "3header.pth", "checkpoint.3.pth", "checkpoint.pth",
    ]  # fmt: skip
    assert read_checkpoint(tmp_path / "out")["position"]["step"] == 3


def _publishes(world, folder, data, kind):
    """One step makes the weights infinite: both ranks end, rank 0 with the error."""
    config = small_config(folder, data, *HUGE_RATE, "batch_size=4", "max_steps=1", f"header={kind}")
    loader, num_classes = load_training_data(config, world)
    header = make_header(config, num_classes, world) if kind == "sharded" else None
    task = small_task(config, num_classes, world, header)
    with pytest.raises(
        UserError if world.is_main else SystemExit, match="1header.pth/kernel" if world.is_main else "2"
    ):
        train(task, loader, config, world)


@pytest.mark.parametrize("kind", ["replicated", "sharded"])
def test_all_processes_end_where_what_they_learned_is_not_finite(tmp_path, tiny_data, kind):
    spawn_ranks(_publishes, tmp_path, tiny_data, kind)
    assert list((tmp_path / "out").glob("*.pth")) == []


def _one_is_bad(world, folder, data):
    """Trains with a loss on rank 1 that is not finite in two steps, and in too many at the end."""
    config = small_config(folder, data, "batch_size=4", "num_epoch=9", "max_bad_steps=4", "log_step=5")
    task_type = failing([] if world.is_main else [2, 3, *range(6, 99)])
    loader, num_classes = load_training_data(config, world)
    task = small_task(config, num_classes, world, task_type=task_type)
    with pytest.raises(UserError if world.is_main else SystemExit):
        train(task, loader, config, world)
    for parameter in [*task.backbone.parameters(), *task.header.parameters()]:
        values = all_gather_rows(parameter.detach().flatten().numpy()[None], world)
        assert (values[0] == values[1]).all()
    assert [key for key in changed(task.before[1], task.before[3]) if "num_batches" not in key] == []


def test_a_step_that_is_bad_for_one_process_is_for_all(tmp_path, tiny_data):
    spawn_ranks(_one_is_bad, tmp_path, tiny_data)
    kept = json.loads((tmp_path / "out" / "bad_steps.json").read_text())["keys"]
    assert {step: len(set(keys)) for step, keys in kept.items()} == {str(step): 8 for step in (6, 7, 8, 9)}


def overflow(loss):
    """Returns a finite loss whose gradient is not finite at any scale."""
    return loss + torch.sqrt(loss * 0)


def test_half_precision_overflows_until_there_is_no_smaller_scale(tmp_path, tiny_data, log_capture):
    """From its first scale of 65536 the scaler tries 16 others, each half of the one before."""
    fields = ["num_epoch=9", "max_bad_steps=3", "precision=fp16", "log_step=5", "channel=1"]
    config = small_config(tmp_path, tiny_data, *fields)
    with pytest.raises(UserError, match="not finite in 3 steps in a row, 17 to 19 "):
        train_small(config, task_type=failing(range(99), overflow))
    assert "skipped" not in log_capture.text.split("Global Step: 15")[0]


def test_a_non_finite_gradient_is_a_bad_step_in_fp32(tmp_path, tiny_data, log_capture):
    step, _ = train_small(small_config(tmp_path, tiny_data, "max_steps=5"), task_type=failing([2, 3], overflow))
    assert step == 5 and "not finite in 2 steps, the last is step 3" in log_capture.text


def test_keys_that_cannot_be_kept_are_no_other_error(tmp_path, tiny_data):
    config = small_config(tmp_path, tiny_data, "num_epoch=2", "max_bad_steps=3")
    (tmp_path / "out" / "bad_steps.json").mkdir(parents=True)
    with pytest.raises(UserError, match=r"1 to 3 .*could not be written to .*bad_steps.json \(Is a directory\)"):
        train_small(config, task_type=failing(range(99)))
