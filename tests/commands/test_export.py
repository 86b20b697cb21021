"""python -m deploy.export: files that are proved, files that are not, and input that cannot be exported."""

import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from deploy import FaceEmbedder
from deploy.export import check_out
from deploy.networks.exported import open_exported
from tests.helpers.commands import run_command
from tests.helpers.exports import export, write_network_and_data
from tests.helpers.networks import write_network
from tests.helpers.paths import ROOT
from utils.checkpoints.weights import read_weights
from utils.errors import UserError
from utils.filesystem import sha256


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A network without an evaluation, and data with a verification set."""
    return write_network_and_data(tmp_path_factory.mktemp("export"))


@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_a_file_that_is_proved(folder, tmp_path, name):
    out = tmp_path / ("net.onnx" if name == "onnx" else "net.xml")
    done = export(folder, "--to", name, "--out", out, "--unit-output", "--uint8-input")
    assert (done.returncode, done.stderr) == (0, "")
    assert "cosine to PyTorch on 256 images: mean 1.000000, worst 1.000000" in done.stdout
    assert "A: PyTorch, B: the file" in done.stdout and "no difference shown" in done.stdout
    assert "one image, one thread: PyTorch" in done.stdout and "images a second: PyTorch" in done.stdout
    size, hint = done.stdout.splitlines()[-2:]
    assert size.startswith(f"{out}: ") and hint.endswith(f"python -m deploy.compare A.jpg B.jpg --model {out}")
    assert {path.name for path in tmp_path.iterdir()} == {out.name, *(["net.bin"] if name == "openvino" else [])}

    metadata = open_exported(out).metadata
    assert metadata["step"] == "5" and metadata["precision"] == "fp32"
    assert metadata["weights_sha256"] == sha256(folder / "run" / "5backbone.pth")
    assert metadata["input"] == {"shape": ["batch", 112, 112, 3], "type": "uint8", "values": "pixels from 0 to 255"}
    assert metadata["output"] == {"shape": ["batch", 32], "unit_length": True}
    assert metadata["network"]["genotypes"] and metadata["accuracy"]["tiny"]["pairs"] == 200
    embedder = FaceEmbedder.load(out)
    face = np.zeros((112, 112, 3), np.uint8)
    comparison = embedder.compare(face, face, far=1e-2)
    assert comparison.threshold == metadata["thresholds"]["tiny"]["1e-02"]["cosine"]


def test_the_default_path(folder, tmp_path):
    """Where an export was killed before."""
    shutil.copytree(folder / "run", tmp_path / "run")
    (tmp_path / "run" / ".export-abcdefgh").mkdir()
    (tmp_path / "run" / ".export-abcdefgh" / ".lock").write_text("process 1 on a machine\n")
    before = {path.name for path in (folder / "run").iterdir()}
    done = export(folder, "--to", "onnx", model=tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert open_exported(tmp_path / "run" / "5-fp32.onnx").embedding_size == 32
    assert {path.name for path in (tmp_path / "run").iterdir()} == before | {"5-fp32.onnx"}


def test_the_users_own_photos(folder, tmp_path):
    photos = tmp_path / "photos"
    run_command(ROOT, sys.executable, "data/unpack.py", folder / "data", photos)
    out = tmp_path / "net.onnx"
    done = run_command(
        ROOT, sys.executable, "-m", "deploy.export", "--to", "onnx", "--model", folder / "run", "--out", out,
        "--folder", photos, "--n-pairs", 400,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [*open_exported(out).metadata["thresholds"]] == ["folder:photos"]


def write_fragile_network(folder):
    """Writes a network that float16 cannot hold: the weights of its last layer are below its range."""
    path = write_network(folder, cosine=None)
    weights = read_weights(path)
    last = max(int(key.split(".")[1]) for key in weights if key.startswith("tail."))
    weights[f"tail.{last - 1}.weight"] *= 1e-12
    weights[f"tail.{last}.weight"] = torch.full_like(weights[f"tail.{last}.weight"], 1e-6)
    weights[f"tail.{last}.running_var"] *= 0
    weights[f"tail.{last}.bias"] *= 0
    torch.save(weights, path)
    return path


def test_a_file_that_is_not_proved(folder, tmp_path):
    write_fragile_network(tmp_path / "run")
    out = tmp_path / "net.onnx"
    out.write_text("an earlier file")
    failed = export(folder, "--to", "onnx", "--precision", "fp16", "--out", out, model=tmp_path / "run")
    assert (failed.returncode, failed.stderr) == (1, ""), failed.stdout
    last = failed.stdout.splitlines()[-1]
    assert last.startswith("Not written: ") and "its worst cosine to PyTorch is " in last
    assert out.read_text() == "an earlier file" and not list(tmp_path.glob(".export*"))
    forced = export(folder, "--to", "onnx", "--precision", "fp16", "--out", out, "--force", model=tmp_path / "run")
    assert forced.returncode == 0, forced.stderr
    assert forced.stdout.splitlines()[-2].startswith("Written in spite of this: ")
    assert open_exported(out).metadata["precision"] == "fp16"


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--to", "onnx", "rec=nothing"], "config rec: no folder"),
        (["--to", "onnx", "val_targets=lfw"], "config val_targets: none of lfw.bin is in"),
        (["--to", "onnx", "--precision", "int8", "--calibration", "nothing"], "nothing: no such folder of faces to"),
        (["--to", "onnx", "--precision", "int4"], "--precision: invalid choice: 'int4'"),
        (["--to", "caffe"], "--to: invalid choice: 'caffe'"),
        (["--precision", "fp16"], "the following arguments are required: --to"),
        (["--to", "onnx", "--out", "net.xml"], "--out net.xml: should end in .onnx"),
        (["--to", "onnx", "--max-drop", "-1"], "--max-drop -1: should be at least 0"),
        (["--to", "onnx", "--out", "/proc/net.onnx"], "--out /proc/net.onnx: "),
        (["--to", "onnx", "--out", "README.md/net.onnx"], "net.onnx: README.md is not a folder; name another file"),
        (["--to", "onnx", "channel=8"], "backbone.pth"),
        (["--to", "onnx", "--model", "missing.pth"], "--model 'missing.pth': no such checkpoint"),
        (["--to", "onnx", "--model", "net.onnx"], "--model net.onnx: is an exported file; name the checkpoint that"),
    ],
)
def test_bad_input_is_one_line(folder, arguments, error):
    done = export(folder, *arguments)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert error in done.stderr


def test_no_folder_is_replaced_but_an_earlier_package(tmp_path):
    for name in ("net.onnx", "net.mlpackage", "earlier.mlpackage"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "notes.txt").write_text("mine")
    for name in ("net.onnx", "net.mlpackage"):
        with pytest.raises(UserError, match=rf"{name}: is a folder; name a file"):
            check_out(tmp_path / name, Path(name).suffix)
    (tmp_path / "earlier.mlpackage" / "Manifest.json").touch()
    check_out(tmp_path / "earlier.mlpackage", ".mlpackage")


def test_weights_without_a_config(folder, tmp_path):
    shutil.copy(folder / "run" / "5backbone.pth", tmp_path)
    done = export(folder, "--to", "onnx", model=tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "no shipped config fits; name its config with --config FILE" in done.stderr


def test_the_file_of_weights_replaces_no_other_file(folder, tmp_path):
    (tmp_path / "lfw.bin").write_text("a verification set")
    done = export(folder, "--to", "openvino", "--out", tmp_path / "lfw.xml")
    assert done.returncode == 2 and "lfw.bin beside it is another file; name another file" in done.stderr
    assert (tmp_path / "lfw.bin").read_text() == "a verification set"


def test_a_missing_package(folder, tmp_path):
    """A package that Python finds no more, as where it is not installed."""
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as util\n"
        "find = util.find_spec\n"
        "util.find_spec = lambda name, package=None: None if name == 'nncf' else find(name, package)\n"
    )
    done = export(folder, "--to", "onnx", "--precision", "int8", new_interpreter=True, PYTHONPATH=str(tmp_path))
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "needs nncf; pip install -r requirements-deploy.txt" in done.stderr


def write_onnx(path, side, kind=onnx.TensorProto.FLOAT):
    """Writes an ONNX network of another project, for images of `side` pixels."""
    shapes = [("images", (None, 3, side, side)), ("embeddings", (None, 3))]
    images, output = (onnx.helper.make_tensor_value_info(name, kind, shape) for name, shape in shapes)
    nodes = [
        onnx.helper.make_node("GlobalAveragePool", ["images"], ["pooled"]),
        onnx.helper.make_node("Flatten", ["pooled"], ["embeddings"]),
    ]
    model = onnx.helper.make_model(
        onnx.helper.make_graph(nodes, "net", [images], [output]), opset_imports=[onnx.helper.make_opsetid("", 17)]
    )
    model.ir_version = 8
    onnx.save(model, path)


def write_identity_onnx(path, *shapes):
    """Writes an ONNX network with an input of each shape, which it returns."""
    inputs, outputs = (
        [
            onnx.helper.make_tensor_value_info(f"{name}{number}", onnx.TensorProto.FLOAT, shape)
            for number, shape in enumerate(shapes)
        ]
        for name in ("in", "out")
    )
    nodes = [onnx.helper.make_node("Identity", [f"in{number}"], [f"out{number}"]) for number in range(len(shapes))]
    graph = onnx.helper.make_graph(nodes, "net", inputs, outputs)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), path)


def test_files_that_cannot_be_used(tmp_path):
    """A model of another size, other inputs, a damaged one, and one without thresholds."""
    write_identity_onnx(tmp_path / "number.onnx", ())
    write_identity_onnx(tmp_path / "two.onnx", (None, 3, 112, 112), (None, 3, 112, 112))
    (tmp_path / "damaged.onnx").write_bytes(b"no network")
    (tmp_path / "damaged.xml").write_bytes(b"<net></net>")
    write_onnx(tmp_path / "large.onnx", 224)
    write_onnx(tmp_path / "other.onnx", 112)
    write_onnx(tmp_path / "half.onnx", 112, onnx.TensorProto.FLOAT16)
    edited = onnx.load(tmp_path / "other.onnx")
    onnx.helper.set_model_props(edited, {"pocketnet": '{"thresholds": []}'})
    onnx.save(edited, tmp_path / "edited.onnx")
    for name, error in {
        "damaged.onnx": "damaged.onnx: cannot be opened (",
        "damaged.xml": "damaged.xml: cannot be opened (",
        "large.onnx": "large.onnx: has an input of 3×224×224 and 3 outputs, expected 112×112 RGB pixels",
        "other.onnx": "other.onnx: there are no thresholds for this network; evaluate it first",
        "missing.onnx": "missing.onnx: no such file",
        "edited.onnx": "edited.onnx: its metadata are damaged (thresholds are not objects)",
        "half.onnx": "half.onnx: has the inputs tensor(float16) [",
        "number.onnx": "number.onnx: has the inputs tensor(float) [], expected one of floats or uint8",
        "two.onnx": "two.onnx: has the inputs tensor(float) [",
    }.items():
        done = run_command(
            ROOT, sys.executable, "-m", "deploy.compare", "a.jpg", "b.jpg", "--model", tmp_path / name
        )  # fmt: skip
        assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
        assert error in done.stderr
