"""The commands of the README for your own photos, from photos to a network tuned on them, in a copy of the project."""

import shlex
import shutil
import sys
from pathlib import Path

import pytest
import torch

from backbones.build import build_backbone
from config import load_config
from tests.helpers.commands import run_command
from tests.helpers.paths import ROOT
from tests.helpers.photos import write_people
from utils.checkpoints.weights import read_weights, save_weights


@pytest.fixture(scope="module")
def clone(project, tmp_path_factory):
    """A copy of the project with photos of eight people and weights of the network."""
    folder = Path(shutil.copytree(project, tmp_path_factory.mktemp("clone") / "PocketNet"))
    write_people(folder / "PHOTOS", people=8, photos=6)
    save_weights(folder / "WEIGHTS.pth", build_backbone(load_config(ROOT / "config" / "config_finetune.py")))
    return folder


def test_the_three_commands_of_the_readme(clone):
    section = (ROOT / "README.md").read_text().partition("## Your own photos\n")[2].partition("```\n")[2]
    lines = section.partition("```")[0].splitlines()
    assert len(lines) == 3
    for line in lines:
        words = [sys.executable if word == "python" else word for word in shlex.split(line, comments=True)]
        done = run_command(clone, *words)
        assert done.returncode == 0, done.stderr
    assert "of the backbone's 925,632 weights are trained" in done.stdout
    before, after = read_weights(clone / "WEIGHTS.pth"), read_weights(clone / "output" / "mine" / "2backbone.pth")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and not any(name.startswith(("stem.", "cells.0.", "cells.8.")) for name in changed)
