"""Checkpoint files: their content, atomic writes, and the files that are refused."""

import pickle
import random

import pytest
import safetensors.torch
import torch
from torch import nn

from backbones.build import build_backbone
from config import load_config
from tests.helpers.paths import ROOT, SHARED
from utils.checkpoints.weights import CheckpointError, list_backbones, load_weights, read_weights, save_weights
from utils.losses.arcface import ArcFace


@pytest.fixture
def backbone():
    return build_backbone(load_config(ROOT / "config" / "config_demo.py", ["channel=4", "n_layers=4"]))


def test_files_have_the_published_names_and_keys_and_load_back(tmp_path, backbone):
    header = ArcFace(128, 5)
    backbone.to(memory_format=torch.channels_last)
    save_weights(tmp_path / "new" / "folder" / "12backbone.pth", backbone)
    save_weights(tmp_path / "new" / "folder" / "12header.pth", header)
    saved = torch.load(tmp_path / "new" / "folder" / "12backbone.pth", weights_only=True)
    assert list(saved) == list(backbone.state_dict()) and "cells.0.dag.0.0.net.0.weight" in saved
    assert all(value.is_contiguous() and value.device.type == "cpu" for value in saved.values())
    assert list(torch.load(tmp_path / "new" / "folder" / "12header.pth", weights_only=True)) == ["kernel"]
    other = build_backbone(load_config(ROOT / "config" / "config_demo.py", ["channel=4", "n_layers=4"]))
    load_weights(other, tmp_path / "new" / "folder" / "12backbone.pth")
    assert all(torch.equal(a, b) for a, b in zip(other.state_dict().values(), saved.values(), strict=True))


def test_a_network_laid_out_otherwise_is_written_plainly(tmp_path):
    linear = nn.Linear(3, 2)
    linear.weight = nn.Parameter(torch.arange(6.0).reshape(3, 2).T)
    save_weights(tmp_path / "1header.pth", linear)
    saved = torch.load(tmp_path / "1header.pth", weights_only=True)
    assert saved["weight"].stride() == (3, 1) and torch.equal(saved["weight"], linear.weight)
    assert all(type(value) is torch.Tensor and not value.requires_grad for value in saved.values())


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "1header.pth"
    save_weights(path, nn.Linear(2, 2))
    before = path.read_bytes()

    def fails(weights, file):
        file.write(b"half of it")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", fails)
    with pytest.raises(OSError, match="No space"):
        save_weights(path, nn.Linear(2, 2))
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["1header.pth"]


def test_backbones_are_listed_in_the_order_of_their_steps(tmp_path):
    for name in ("100backbone.pth", "20backbone.pth", "3header.pth", "xbackbone.pth", "9backbone.pth.tmp"):
        (tmp_path / name).touch()
    for name in ("-1backbone.pth", "5x6backbone.pth", ".7backbone.pth.12.tmp", "8backbonexpth", "backbone.pth"):
        (tmp_path / name).touch()
    assert list_backbones(tmp_path) == {step: tmp_path / f"{step}backbone.pth" for step in (20, 100)}
    assert list(list_backbones(tmp_path)) == [20, 100]
    with pytest.raises(CheckpointError, match=r"no .*backbone\.pth in"):
        list_backbones(tmp_path / "none")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda w: w | {"tail.1.weight": torch.zeros(3)},
            r"tail\.1\.weight has shape \(3,\), but the config needs \(512, 128, 1, 1\)",
        ),
        (lambda w: {k: v for k, v in w.items() if k != "tail.7.bias"}, r"has nothing else and lacks tail\.7\.bias \("),
        (lambda w: w | {"more": torch.zeros(1)}, r"another network: it has more \(1,\) and lacks nothing else"),
        (lambda w: w | {"stem.0.weight": "text"}, "should hold a state dict of tensors"),
        (
            lambda w: {"state_dict": w, "ema": w},
            r"holds 2 state dicts \(state_dict, ema\); save",
        ),
        (lambda w: w | {"stem.0.weight": w["stem.0.weight"].to_sparse()}, "only dense real tensors"),
        (lambda w: w | {"stem.0.weight": w["stem.0.weight"].to("meta")}, "only dense real tensors"),
        (lambda w: w | {"stem.0.weight": w["stem.0.weight"] + 1j}, "only dense real tensors"),
        (lambda w: {}, r"another network: .* lacks stem\.0\.weight \(.*\) \(and \d+ more\)"),
        (lambda w: list(w.values()), "should hold a state dict of tensors"),
    ],
)
def test_weights_of_another_network_name_the_first_key_that_differs(tmp_path, backbone, change, message):
    path = tmp_path / "1backbone.pth"
    other = {key: value + 1 for key, value in backbone.state_dict().items()}
    torch.save(change(other), path)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    with pytest.raises(CheckpointError, match=message) as error:
        load_weights(backbone, path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())


def test_the_error_for_another_embedding_size_names_both_shapes(tmp_path, backbone):
    save_weights(tmp_path / "1backbone.pth", backbone)
    overrides = ["channel=4", "n_layers=4", "embedding_size=64"]
    other = build_backbone(load_config(ROOT / "config" / "config_demo.py", overrides))
    with pytest.raises(
        CheckpointError,
        match=r"\(128, 512, 1, 1\), but the config needs \(64, 512, 1, 1\); .* embedding_size",
    ):
        load_weights(other, tmp_path / "1backbone.pth")


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch, of pickle protocols that the damage names
@pytest.mark.parametrize("zipped", [True, False])
def test_damage_anywhere_is_a_one_line_error(tmp_path, zipped):
    """Bytes changed at random: torch raises a dozen kinds of errors over them."""
    path, linear, rng = tmp_path / "1header.pth", nn.Linear(2, 2), random.Random(0)
    torch.save(linear.state_dict(), path, _use_new_zipfile_serialization=zipped)
    intact, rejected = path.read_bytes(), 0
    for _ in range(150):
        damaged = bytearray(intact)
        damaged[rng.randrange(len(intact))] = rng.choice([0, 40, 46, 93, 125, 255])
        path.write_bytes(damaged)
        try:
            load_weights(linear, path)  # damage to a number or to padding goes unseen
        except CheckpointError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            rejected += 1
    assert rejected > 50


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "text", "folder"])
def test_a_file_that_is_no_checkpoint_is_named_in_one_line(tmp_path, backbone, damage):
    path = tmp_path / "1backbone.pth"
    if damage == "cut":
        save_weights(path, backbone)
        path.write_bytes(path.read_bytes()[:-5000])
    elif damage == "folder":
        path.mkdir()
    elif damage != "missing":
        path.write_text("" if damage == "empty" else "no checkpoint at all")
    with pytest.raises(CheckpointError, match=r"1backbone\.pth") as error:
        load_weights(backbone, path)
    assert "\n" not in str(error.value)


def test_safetensors_load_as_a_checkpoint_does(tmp_path, backbone):
    save_weights(tmp_path / "12backbone.pth", backbone)
    safetensors.torch.save_file(backbone.state_dict(), tmp_path / "model.safetensors")
    expected, found = (read_weights(tmp_path / name) for name in ("12backbone.pth", "model.safetensors"))
    assert expected.keys() == found.keys() and all(torch.equal(expected[key], found[key]) for key in expected)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a readable checkpoint: it is damaged"),
        (safetensors.torch.save({"weight": torch.zeros(2, 2)})[:-1], "not a readable checkpoint: it is damaged"),
        (safetensors.torch.save({"weight": torch.zeros(2, 2)}), "lacks bias"),
        (safetensors.torch.save({"a": torch.zeros(2, dtype=torch.complex64)}), "only real tensors .*complex64"),
        (safetensors.torch.save({"a": torch.zeros(2).to(torch.float8_e5m2)}), "at least 16 bits; 'a' is .*float8_e5m2"),
        (safetensors.torch.save({"a": torch.zeros(2)}).replace(b'"F32"', b'"F99"'), "not a readable checkpoint"),
    ],
)
def test_safetensors_that_cannot_be_loaded(tmp_path, content, message):
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as error:
        load_weights(torch.nn.Linear(2, 2), tmp_path / "a.safetensors")
    assert str(error.value).startswith(f"{tmp_path}/a.safetensors: ") and "\n" not in str(error.value)


class Hostile:
    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return exec, (f"open({str(self.canary)!r}, 'w')",)


@pytest.mark.parametrize("write", [torch.save, lambda what, path: path.write_bytes(pickle.dumps(what))])
def test_nothing_of_a_hostile_checkpoint_runs(tmp_path, backbone, write):
    path, canary = tmp_path / "1backbone.pth", tmp_path / "ran"
    write({"stem.0.weight": Hostile(canary)}, path)
    with pytest.raises(CheckpointError, match="not a readable checkpoint") as error:
        load_weights(backbone, path)
    assert not canary.exists()
    # torch's own message explains how to load it unsafely
    assert not any(advice in str(error.value) for advice in ("weights_only", "can still be loaded", "\x1b"))


@pytest.mark.skipif(not (SHARED / "data" / "PocketNetS-128").is_dir(), reason="no published weights in ../shared/data")
def test_published_weights_load():
    backbone = build_backbone(load_config(ROOT / "config" / "config_PocketNetS128.py"))
    before = backbone.state_dict()["stem.0.weight"].clone()
    load_weights(backbone, SHARED / "data" / "PocketNetS-128" / "295672backbone.pth")
    assert not torch.equal(before, backbone.state_dict()["stem.0.weight"])
