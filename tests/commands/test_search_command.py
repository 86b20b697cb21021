"""The commands of the search: NAS/search.sh, NAS/derive.py, then ./train.sh with the derived config."""

import argparse
import ast
import json
import os
import re
import sys

import cv2
import pytest
import torch

from backbones.genotypes import SOFTMAX_CASIA, parse_genotype
from benchmarks.experiments import search_cost
from config import load_config
from NAS import derive
from NAS.derive import config_text, read_genotype
from NAS.supernet import Supernet
from tests.helpers.commands import run_command
from utils.errors import UserError
from utils.flops import Cost

TINY = [
    "rec=data/faces_demo", "channel=2", "n_layers=4", "n_nodes=2", "embedding_size=16", "batch_size=4", "workers=1",
    "num_epoch=2", "log_step=2", "search_eval=6",
]  # fmt: skip
STEP_LINE = r"Loss [\d.]+   AlphaLoss [\d.]+   Cost [\d.]+   Epoch: \d   Global Step: \d+"


@pytest.fixture(scope="module")
def searched(demo, tmp_path_factory):
    """Output folder and standard output of a search of two epochs of six steps."""
    folder = tmp_path_factory.mktemp("search")
    folders = [f"output={folder}", f"log_dir={folder / 'logs'}"]
    done = run_command(demo, "NAS/search.sh", *TINY, *folders, new_interpreter=True)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_a_search_leaves_genotypes_pictures_and_weights(searched):
    folder, log_capture = searched
    assert len(re.findall(STEP_LINE, log_capture)) == 6
    lines = [json.loads(line) for line in (folder / "genotypes.jsonl").read_text().splitlines()]
    assert [(line["epoch"], line["step"]) for line in lines] == [(0, 6), (1, 12)]
    for line in lines:
        genotype = parse_genotype(line["genotype"])
        assert f"Genotype: {line['genotype']}" in log_capture
        assert line["skips"] == sum(operation == "skip_connect" for node in genotype.normal for operation, _ in node)
        assert 0.9 < line["entropy"] <= 1
        for name in ("supernet_train", "derived_train", "supernet_val", "derived_val"):
            assert 0 <= line[name] <= 1
    for picture in ("cells.png", "alphas.png", "pictures/000cells.png", "pictures/001alphas.png"):
        assert min(cv2.imread(str(folder / picture)).shape[:2]) > 200
    net = Supernet(2, 4, 2, 3, 6, emb=16)
    net.load_state_dict(torch.load(folder / "12supernet.pth", weights_only=True))
    assert str(net.genotype()) == lines[1]["genotype"]
    assert list((folder / "logs").rglob("events*"))


def test_the_result_trains(demo, searched, tmp_path):
    folder, _ = searched
    derive = [sys.executable, "NAS/derive.py", "--name", "found", f"output={folder}", "--rec", "data/faces_demo"]
    made = run_command(demo, *derive, "--channel", 4, "--n-layers", 4, new_interpreter=True)
    assert made.returncode == 0, made.stderr
    text = (demo / "config" / "config_found.py").read_text()
    parameters = re.search(r"found: ([\d,]+) parameters, [\d.]+ MFLOPs", text)
    counted = run_command(demo, sys.executable, "-m", "utils.flops", "--config", "config/config_found.py")
    assert parameters and parameters[1] in counted.stdout
    small = ["batch_size=8", "workers=1", "max_steps=1", "eval_step=0"]
    trained = run_command(demo, "./train.sh", "--config", "config/config_found.py", *small, f"output={tmp_path}")
    assert trained.returncode == 0 and (tmp_path / "1backbone.pth").is_file(), trained.stderr
    again = run_command(demo, *derive)
    assert again.returncode == 2 and "already exists; choose another name, or pass --force" in again.stderr


def test_skips_are_limited_after_the_search(searched, tmp_path):
    """From the alphas of an epoch, which its line holds."""
    (found, _), (same, _) = read_genotype(searched[0], None), read_genotype(searched[0], None, skip_limit=4)
    assert same == found
    line = json.loads((searched[0] / "genotypes.jsonl").read_text().splitlines()[-1])
    for node in line["alphas"]["normal"]:
        for edge in node:
            edge[line["operations"].index("skip_connect")] = 9.0
    path = tmp_path / "genotypes.jsonl"
    path.write_text(json.dumps(line))
    for limit in (0, 1):
        genotype, origin = read_genotype(tmp_path, None, skip_limit=limit)
        assert sum(operation == "skip_connect" for node in genotype.normal for operation, _ in node) == limit
        assert genotype.reduce == found.reduce and origin.endswith(f", with at most {limit} skip_connect")
    del line["alphas"]
    path.write_text(json.dumps(line))
    with pytest.raises(UserError, match=r"--skip-limit: \S* has no alphas"):
        read_genotype(tmp_path, None, skip_limit=1)


def test_results_are_written_through_no_link(demo, searched, tmp_path):
    (tmp_path / "precious").write_text("precious")
    pictures = [demo / "config" / "config_linked.png", tmp_path / "cells.pdf", tmp_path / "cells"]
    links = [demo / "config" / "config_linked.py", *pictures]
    for link in links:
        link.symlink_to(tmp_path / "precious")
    derive = ["NAS/derive.py", "--name", "linked", "--force", f"output={searched[0]}"]
    draw = ["NAS/visualize.py", "--config", "config/config_linked.py", "--out"]
    for command in (derive, *([*draw, picture] for picture in pictures[1:])):
        done = run_command(demo, sys.executable, *command)
        assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "precious").read_text() == "precious" and not any(link.is_symlink() for link in links)
    assert [path.read_bytes()[:4] for path in pictures] == [b"\x89PNG", b"%PDF", b"\x89PNG"]
    for link in links[:2]:
        link.unlink()


def test_a_picture_that_cannot_be_written_is_one_line(demo, tmp_path):
    draw = ["NAS/visualize.py", "--config", "config/config_demo.py", "seed=3", "--out"]
    drawn = run_command(demo, sys.executable, *draw, tmp_path / "cells.png", new_interpreter=True)
    assert (drawn.returncode, drawn.stderr) == (0, "Config: seed: set, but not used by this command\n")
    draw = [*draw[:3], "--out"]
    for out, message in ((tmp_path, "Is a directory"), (tmp_path / "a.xyz", "Format 'xyz' is not supported")):
        failed = run_command(demo, sys.executable, *draw, out)
        assert failed.returncode == 2
        assert re.fullmatch(f"error: --out {re.escape(str(out))}: {message}.*\n", failed.stderr), failed.stderr


def test_two_processes_have_the_same_alphas(demo, tmp_path):
    """The run would end if the alphas of a rank differed from those of rank 0."""
    few = ["num_epoch=1", "max_steps=2", f"output={tmp_path}", f"log_dir={tmp_path / 'logs'}", "compile=True"]
    done = run_command(demo, "NAS/search.sh", *TINY, *few, NPROC="2")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "2supernet.pth").is_file() and done.stdout.count("Genotype:") == 1
    assert len(re.findall(r"Config: .*compile.*: set, but not used by this command", done.stdout)) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rec=nowhere"], "config rec: no folder 'nowhere'"),
        ([*TINY, "precision=fp16"], "config precision: the search runs in fp32 or bf16"),
        ([*TINY, "batch_size=1"], "config batch_size: 1, but the supernet's batch norm needs 2 images or more"),
        ([*TINY, "search_eval=1"], "config search_eval: 1, but batch norm needs 2 images or more"),
        ([*TINY, "data_source=imagenet"], "config data_source: should be recordio or cifar10"),
        ([*TINY, "alpha_gradient=both"], "config alpha_gradient: should be validation or published"),
        ([*TINY, "alpha_betas=0.5"], "config alpha_betas: should be two numbers"),
        ([*TINY, "batch_size=30"], "config batch_size: 30 images on 1 processes are more than the data set's 24"),
    ],
)
def test_a_wrong_search_is_one_line(demo, tmp_path, arguments, message):
    failed = run_command(demo, sys.executable, "NAS/search.py", *arguments, f"output={tmp_path}", f"log_dir={tmp_path}")
    assert failed.returncode == 2
    assert re.fullmatch(f"error: {re.escape(message)}.*\n", failed.stderr), failed.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--name", "a b"], "--name 'a b': should be letters, digits and _"),
        (["--name", "other", "output=nowhere"], "config output: no genotypes.jsonl in 'nowhere'"),
        (["--name", "other", "--epoch", "7", "output={folder}"], "--epoch: 7 is not in"),
        (["--name", "other", "--genotype", "Genotype()"], "genotype: needs normal"),
        (
            ["--name", "other", "--genotype", "{folder}/cells.png"],
            "--genotype {folder}/cells.png: cannot be read as",
        ),
        (["--name", "other", "--n-layers", "3", "output={folder}"], "--channel, --n-layers, --embedding-size: "),
    ],
)
def test_a_wrong_derivation_is_one_line(demo, searched, arguments, message):
    *arguments, message = [text.format(folder=searched[0]) for text in (*arguments, message)]
    failed = run_command(demo, sys.executable, "NAS/derive.py", *arguments)
    assert failed.returncode == 2
    assert re.fullmatch(f"error: {re.escape(message)}.*\n", failed.stderr), failed.stderr


def test_genotypes_in_a_pipe_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "genotypes.jsonl")
    with pytest.raises(UserError, match=r"^\S*genotypes\.jsonl: is not a regular file \(a pipe\)"):
        read_genotype(tmp_path, None)
    with pytest.raises(UserError, match=r"--genotype .*: cannot be read as text"):
        derive._read_genotype_text(str(tmp_path / "genotypes.jsonl"))


@pytest.mark.parametrize("folder", ['a """quoted""" folder"', "back\\slash\\", "two\nlines"])
def test_a_derived_config_names_its_origin(folder, tmp_path):
    """Also for folder names that need escapes in Python."""
    epoch = {"epoch": 3, "genotype": SOFTMAX_CASIA}
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "genotypes.jsonl").write_text(json.dumps(epoch) + "\n")
    genotype, origin = read_genotype(tmp_path / folder, None)
    args = argparse.Namespace(name="odd", rec=folder, embedding_size=128, channel=16, n_layers=18)
    path = tmp_path / "config_odd.py"
    path.write_text(config_text(args, genotype, origin, Cost()))
    config = load_config(path)
    assert parse_genotype(config.genotypes["odd"]) == genotype and config.rec == folder
    assert f"Found by a search, epoch 3 of {tmp_path / folder}." in (
        ast.get_docstring(ast.parse(path.read_text())) or ""
    )


def test_the_table_of_costs():
    epoch = {"genotype": SOFTMAX_CASIA, "cost": 1.234, "supernet_val": 0.225, "skips": 3}
    lines = search_cost.table({0.0: epoch, 0.3: epoch | {"cost": 0.5}}).splitlines()
    assert [line.split()[:2] for line in lines[2:]] == [["0", "1.23"], ["0.3", "0.50"]]
    assert lines[2].split()[3:] == ["22.50", "3"]
    assert search_cost.weights_of("0,0.5") == [0, 0.5]
    for wrong in ("", "1,a", "-1", "inf", "nan", "1,1.0"):
        with pytest.raises(UserError, match="--weights"):
            search_cost.weights_of(wrong)
