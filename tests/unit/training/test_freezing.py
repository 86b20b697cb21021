"""Fine-tuning with frozen modules: freeze=stem,cells.0-8."""

import copy
import pickle
import re
import shutil
import sys

import pytest
import torch
from torch import nn

from backbones.iresnet import IResNet
from tests.helpers.commands import DEMO, run_command
from tests.helpers.published_files import assert_same_weights, read_weights_files
from utils.checkpoints.run_file import read_checkpoint
from utils.checkpoints.weights import read_weights
from utils.errors import UserError
from utils.training.freezing import expand_ranges, freeze_modules

FROZEN = ("stem.", "cells.0.", "cells.1.")
TEACHER = ["teacher_network=PocketNet", "teacher_pth=output/demo", "teacher_global_step=12"]


def finetune(demo, out, *arguments, command="train.py", **environment):
    """Trains from the demo's weights, whose network has four cells, with the first two of them frozen."""
    script = [f"./{command.replace('.py', '.sh')}"] if environment else [sys.executable, command]
    start = ["student_pth=output/demo", "student_global_step=12", "freeze=stem,cells.0-1"]
    fields = [f"output={out}", f"log_dir={out / 'logs'}", "save_initial=0", "num_epoch=1", *start, *arguments]
    return run_command(demo, *script, *DEMO, *fields, **environment)


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        (["eval_step=2"], {}),  # verification puts the network in evaluation mode and back
        (["optimizer=adamw", "precision=bf16"], {}),
        ([], {"NPROC": "2"}),
        (["header=sharded"], {"NPROC": "2"}),
        (TEACHER, {"command": "train_kd.py"}),
    ],
)
def test_frozen_weights_and_statistics_stay_and_all_others_change(demo, tmp_path, arguments, options):
    done = finetune(demo, tmp_path / "out", *arguments, **options)
    assert done.returncode == 0, done.stderr
    assert re.search(r"Frozen: stem,cells\.0-1; [\d,]+ of the backbone's [\d,]+ weights are trained", done.stdout)
    (path,) = (tmp_path / "out").glob("*backbone.pth")
    before, after = read_weights(demo / "output" / "demo" / "12backbone.pth"), read_weights(path)
    assert before.keys() == after.keys()
    same = {key for key in before if torch.equal(before[key], after[key])}
    assert same == {key for key in before if key.startswith(FROZEN)}
    trained = read_checkpoint(tmp_path / "out")["optimizer"]["backbone"]
    assert all(not name.startswith(FROZEN) for names in trained.values() for name in names) and trained


def test_a_run_stopped_at_any_step_ends_with_the_same_weights(demo, tmp_path):
    fields = ["num_epoch=2", "lr_steps=1"]
    assert finetune(demo, tmp_path / "uncut", *fields).returncode == 0
    for stop in ("max_steps=4", "max_steps=8", "max_steps=0"):
        assert finetune(demo, tmp_path / "cut", *fields, stop).returncode == 0
    uncut, cut = (read_weights_files(tmp_path / name) for name in ("uncut", "cut"))
    assert_same_weights(uncut, {name: cut[name] for name in uncut})


def test_a_run_with_the_same_modules_in_other_words_is_resumed(demo, tmp_path):
    assert finetune(demo, tmp_path, "max_steps=1").returncode == 0
    done = finetune(demo, tmp_path, "max_steps=2", "freeze=cells.1, cells.0,stem ")
    assert done.returncode == 0 and "Resumes at step 1: " in done.stdout, done.stderr


def test_a_run_with_other_frozen_modules_is_not_resumed(demo, tmp_path):
    assert finetune(demo, tmp_path, "max_steps=1").returncode == 0
    for change, message in (
        ("freeze=stem", r"config freeze: stem, but the run in .* has 'stem,cells\.0-1'; use that; .*"),
        ("freeze=", r"config freeze: empty, but the run in .* has 'stem,cells\.0-1'; use that; .*"),
    ):
        failed = finetune(demo, tmp_path, change)
        assert failed.returncode == 2 and re.fullmatch(f"error: {message}\n", failed.stderr), failed.stderr


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("stem,cels.3", "the network has no module 'cels.3'; its modules are stem, cells, tail"),
        ("cells.2-4", "the network has no module 'cells.4'; its modules are stem, cells, tail"),
        ("cells.3-2", "the network has no module 'cells.3-2'; its modules are stem, cells, tail"),
        ("stem,", "the network has no module ''; its modules are stem, cells, tail"),
        ("stem, cells,tail", "'stem, cells,tail' leaves no weight of the backbone to train"),
    ],
)
def test_names_that_do_not_fit_are_one_line(demo, tmp_path, names, message):
    failed = finetune(demo, tmp_path / "out", f"freeze={names}")
    assert (failed.returncode, failed.stderr) == (2, f"error: config freeze: {message}\n")
    assert not list((tmp_path / "out").glob("*.pth"))


def test_any_part_of_any_backbone_may_be_frozen():
    network = IResNet(18, 16)
    freeze_modules(network, "conv1, layer1,layer2.0-1,fc")
    network.train()
    frozen = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
    expected = ("conv1.", "layer1.", "layer2.", "fc.", "features.weight")
    assert frozen == {name for name, _ in network.named_parameters() if name.startswith(expected)}
    assert not network.layer1[1].bn2.training and network.layer3[0].bn1.training and network.features.training


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda network: pickle.loads(pickle.dumps(network))])
def test_a_copy_of_a_frozen_network_is_frozen_for_itself(copied):
    network = IResNet(18, 16)
    freeze_modules(network, "layer1")
    other = copied(network)
    network.eval()
    other.train()
    assert other.layer2.training and not other.layer1[1].bn2.training and not network.layer2.training
    other.layer1.train()
    assert not other.layer1.training and other.layer1.train() is other.layer1


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
def test_a_compiled_network_keeps_what_is_frozen():
    def block(channels: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(channels, 4, 3), nn.BatchNorm2d(4))

    torch.manual_seed(0)
    plain = nn.Sequential(block(3), block(4))
    freeze_modules(plain, "0")
    compiled = copy.deepcopy(plain)
    compiled.compile()
    before, images = copy.deepcopy(plain.state_dict()), torch.randn(4, 3, 8, 8)
    for network in (plain, compiled):
        network.eval()
        network(images)  # as a verification does
        network.train()
        network(images).square().mean().backward()
    assert {name for name, value in compiled.state_dict().items() if torch.equal(value, before[name])} == {
        name for name in before if name.startswith("0.") or name.endswith(("weight", "bias"))
    }
    torch.testing.assert_close(compiled.state_dict(), plain.state_dict())
    for one, other in zip(compiled.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-6)
    assert all((weight.grad is None) == name.startswith("0.") for name, weight in compiled.named_parameters())


def test_ranges():
    assert list(expand_ranges("a, b.2-4,c")) == ["a", "b.2", "b.3", "b.4", "c"]
    assert list(expand_ranges("0-1,7")) == ["0", "1", "7"]
    with pytest.raises(UserError, match="its modules are conv1, bn1, prelu, layer1"):
        freeze_modules(IResNet(18, 16), "stem")


def test_random_weights_are_not_frozen(demo, tmp_path):
    done = run_command(demo, sys.executable, "train.py", *DEMO, "freeze=stem", f"output={tmp_path / 'out'}")
    message = "error: config freeze: 'stem' would keep random weights; name trained ones: student_pth=FILE\n"
    assert (done.returncode, done.stderr) == (2, message)
