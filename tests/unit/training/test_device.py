"""The config field `device`: which device a rank takes, and how many processes a command starts."""

import json
import sys

import pytest
import torch

from config import ConfigError, load_config, save_config
from tests.helpers.commands import DEMO, run_command
from tests.helpers.paths import ROOT
from utils.distributed.launch import launch_on_all_gpus
from utils.distributed.process_group import select_device
from utils.errors import UserError

CONFIG = ROOT / "config" / "config_demo.py"


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name in ("NPROC", "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


def test_each_rank_takes_its_gpu_unless_the_cpu_is_requested(two_gpus, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert [str(select_device(name)) for name in ("auto", "cuda", "cpu")] == ["cuda:1", "cuda:1", "cpu"]
    monkeypatch.setenv("LOCAL_RANK", "2")
    assert select_device("cpu").type == "cpu"
    with pytest.raises(UserError, match="process 3 of this machine finds 2 GPUs; NPROC=2 at most, or device=cpu"):
        select_device("auto")


def test_a_requested_gpu_that_is_not_there_is_an_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert select_device("auto").type == select_device("cpu").type == "cpu"
    with pytest.raises(UserError, match=r"config device: cuda, but PyTorch finds no GPU; .*device=cpu"):
        select_device("cuda")


def test_evaluation_starts_a_process_on_each_gpu_that_it_uses(two_gpus, monkeypatch):
    started = []
    monkeypatch.setattr("utils.distributed.launch.launch", lambda arguments: started.append(arguments) or 0)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    launch_on_all_gpus("cpu")
    assert not started
    with pytest.raises(SystemExit):
        launch_on_all_gpus("auto")
    assert started[0][:3] == ["--standalone", "--nproc-per-node", "2"]


@pytest.mark.parametrize(("device", "expected"), [("cpu", "train.py device=cpu"), ("auto", "--nproc-per-node 2")])
def test_training_starts_a_process_on_each_gpu_that_it_uses(tmp_path, tiny_data, device, expected):
    """A Python that reports two GPUs, reads configs, and prints the training's command in place of running it."""
    python = tmp_path / "python"
    python.write_text(
        f'#!/bin/bash\ncase "$*" in\n*device_count*) echo 2 ;;\n*"-m config"*) exec {sys.executable} "$@" ;;\n'
        '*) echo "$@" ;;\nesac\n'
    )
    python.chmod(0o755)
    arguments = ["--config", CONFIG, f"device={device}", f"rec={tiny_data}", f"output={tmp_path}/out"]
    done = run_command(ROOT, "./train.sh", *arguments, f"log_dir={tmp_path}/logs", PYTHON=str(python))
    assert done.returncode == 0 and expected.split()[0] in done.stdout, done.stderr
    assert ("utils.distributed.launch" in done.stdout) == (device == "auto")


def test_the_device_belongs_to_one_start_of_a_run(tmp_path):
    config = load_config(CONFIG, [f"output={tmp_path}", "device=cpu"])
    save_config(config)
    assert "device" not in json.loads((tmp_path / "config.json").read_text())
    assert load_config(tmp_path).device == "auto"
    with pytest.raises(ConfigError, match="config device: should be auto, cpu or cuda, is 'gpu'"):
        load_config(CONFIG, ["device=gpu"])


def test_every_command_refuses_a_gpu_that_is_not_there_in_one_line(tmp_path, tiny_data):
    places = [f"rec={tiny_data}", f"output={tmp_path}", f"log_dir={tmp_path}/logs", "device=cuda"]
    for command in ("train.py", "NAS/search.py"):
        done = run_command(ROOT, sys.executable, command, *DEMO, *places)
        assert done.returncode == 2 and done.stderr.startswith("error: config device: cuda, "), done.stderr
        assert done.stderr.count("\n") == 1
