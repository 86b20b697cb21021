"""Optimizers beside SGD: the same exact resume, skipped non-finite steps and checkpoints."""

from itertools import pairwise

import pytest
import torch
from torch.optim import NAdam

from tests.helpers.published_files import assert_same_weights, read_weights_files
from tests.helpers.training import CPU, small_config, small_task, spawn_ranks, train_sharded, train_small
from utils.checkpoints.run_file import read_checkpoint, write_checkpoint
from utils.datasets.training_data import load_training_data
from utils.errors import UserError
from utils.registry import OPTIMIZERS, load_entry
from utils.training.arcface_task import ArcFaceTask
from utils.training.engine import train

ADAMW = ["optimizer=adamw", "lr=0.01", "weight_decay=0.05"]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_is_filled_before_the_first_step_as_the_optimizer_fills_it(tmp_path, tiny_data, name):
    config = small_config(tmp_path, tiny_data, f"optimizer={name}")
    parameter = torch.nn.Parameter(torch.ones(3, 2))
    optimizer = load_entry(OPTIMIZERS[name])([parameter], config)
    filled = {key: (value.shape, value.dtype) for key, value in optimizer.state[parameter].items()}
    plain = type(optimizer)(
        [torch.nn.Parameter(torch.ones(3, 2))], lr=0.1, fused=True, **({"momentum": 0.9} if name == "sgd" else {})
    )
    plain.param_groups[0]["params"][0].grad = torch.ones(3, 2)
    plain.step()
    (state,) = plain.state.values()
    assert filled == {key: (value.shape, value.dtype) for key, value in state.items()}


def test_one_step_is_that_of_adamw(tmp_path, tiny_data):
    """Against torch's plain AdamW on the same clipped gradients."""
    config = small_config(tmp_path, tiny_data, "max_steps=1", *ADAMW)
    loader, num_classes = load_training_data(config, CPU)
    task = small_task(config, num_classes)
    before = [p.detach().clone() for p in task.header.parameters()]
    grads = []
    for p in task.header.parameters():
        p.register_hook(lambda g: grads.append(g.clone()))
    train(task, loader, config, CPU)
    for old, new, grad in zip(before, task.header.parameters(), grads, strict=True):
        expected = torch.nn.Parameter(old)
        expected.grad = grad
        torch.optim.AdamW([expected], lr=0.01 * 8 / 512, weight_decay=0.05).step()
        torch.testing.assert_close(new.detach(), expected.detach(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_run_stopped_at_any_step_ends_with_the_same_weights(tmp_path, tiny_data, precision):
    fields = ["num_epoch=3", "lr_steps=2", f"precision={precision}", "s=16", "channel=1", *ADAMW]
    train_small(small_config(tmp_path / "uncut", tiny_data, *fields))
    for stop in (2, 7):
        train_small(small_config(tmp_path / "cut", tiny_data, *fields, f"max_steps={stop}"))
    train_small(small_config(tmp_path / "cut", tiny_data, *fields))
    uncut, cut = (read_weights_files(tmp_path / name / "out") for name in ("uncut", "cut"))
    assert_same_weights(uncut, {name: cut[name] for name in uncut})


def test_a_sharded_header_resumes_to_the_bit(tmp_path, tiny_data):
    fields = ["header=sharded", "sample_rate=0.75", *ADAMW]
    spawn_ranks(train_sharded, tmp_path / "uncut", tiny_data, *fields)
    spawn_ranks(train_sharded, tmp_path / "cut", tiny_data, *fields, "max_steps=7")
    spawn_ranks(train_sharded, tmp_path / "cut", tiny_data, *fields)
    uncut, cut = (read_weights_files(tmp_path / name / "out") for name in ("uncut", "cut"))
    assert_same_weights(uncut, {name: cut[name] for name in uncut})


def test_a_non_finite_step_changes_no_state(tmp_path, tiny_data):
    states = []

    class NonFinite(ArcFaceTask):
        def on_train_start(self, optimizer):
            self.optimizer = optimizer

        def __call__(self, batch):
            states.append([value.clone() for state in self.optimizer.state.values() for value in state.values()])
            losses = super().__call__(batch)
            return {"Loss": losses["Loss"] * torch.nan} if len(states) == 3 else losses

    NonFinite.__name__ = ArcFaceTask.__name__
    train_small(small_config(tmp_path, tiny_data, "max_steps=5", *ADAMW), task_type=NonFinite)
    same = [all(map(torch.equal, before, after)) for before, after in pairwise(states)]
    assert same == [False, False, True, False]


def test_another_optimizer_is_refused(tmp_path, tiny_data):
    train_small(small_config(tmp_path, tiny_data, "max_steps=2"))
    with pytest.raises(UserError, match=r"config optimizer: adamw, but the run in .* has 'sgd'; use that"):
        train_small(small_config(tmp_path, tiny_data, "max_steps=4", *ADAMW))


def test_an_optimizer_without_state_in_the_checkpoint_resumes(tmp_path, tiny_data, monkeypatch):
    """Most optimizers have no state for a parameter before its first gradient."""
    monkeypatch.setitem(OPTIMIZERS, "nadam", "torch.optim:NAdam")
    monkeypatch.setattr("utils.training.optimizers.load_entry", lambda entry: lambda parameters, _: NAdam(parameters))
    config = small_config(tmp_path, tiny_data, "max_steps=2")
    config.optimizer = "nadam"
    train_small(config)
    state = read_checkpoint(tmp_path / "out")
    assert state["optimizer"]["header"].keys() == {"step", "mu_product", "exp_avg", "exp_avg_sq"}
    state["optimizer"]["header"] = {}
    write_checkpoint(tmp_path / "out", 1, state)
    config.max_steps = 4
    assert train_small(config)[0] == 4


def test_checkpoints_of_format_2_are_resumed(tmp_path, tiny_data, log_capture):
    """They have the momentum of SGD, and no optimizer in their config."""
    train_small(small_config(tmp_path / "uncut", tiny_data, "num_epoch=2"))
    train_small(small_config(tmp_path / "cut", tiny_data, "num_epoch=2", "max_steps=3"))
    folder = tmp_path / "cut" / "out"
    state = read_checkpoint(folder)
    state["momentum"] = {name: keys["momentum_buffer"] for name, keys in state.pop("optimizer").items()}
    for name in ("optimizer", "loss", "data_source", "search_space"):  # fields of later versions
        del state["config"][name]
    del state["config"]["header"]
    state["config"] |= {"search_data": "faces", "head": "whole"}
    write_checkpoint(folder, 1, state | {"version": 2})
    log_capture.clear()
    train_small(small_config(tmp_path / "cut", tiny_data, "num_epoch=2"))
    assert [line for line in log_capture.messages if "Changed" in line] == ["Changed: config max_steps was 3, is 0"]
    uncut, cut = (read_weights_files(tmp_path / name / "out") for name in ("uncut", "cut"))
    assert_same_weights(uncut, {name: cut[name] for name in uncut})
