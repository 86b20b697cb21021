"""ONNX files as teachers."""

import os
import sys

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper

from utils.distillation.onnx_teacher import OnnxTeacher
from utils.distributed.process_group import World
from utils.errors import UserError

CPU = World(0, 1, torch.device("cpu"))
WEIGHTS = np.random.default_rng(0).standard_normal((3, 16)).astype(np.float32)


def write(path, batch="B", size=16, side=112, output=True, kind=TensorProto.FLOAT, shape=None, weights=WEIGHTS):
    """A network that averages the pixels and multiplies them by the weights; or gives the means in another shape."""
    weights = weights[:, :size].astype(np.float16 if kind == TensorProto.FLOAT16 else np.float32)
    constants = [numpy_helper.from_array(weights, "weights")]
    nodes = [helper.make_node("GlobalAveragePool", ["images"], ["mean"])]
    if shape:
        constants.append(numpy_helper.from_array(np.array(shape, np.int64), "shape"))
        nodes.append(helper.make_node("Reshape", ["mean", "shape"], ["embedding"]))
    else:
        nodes.append(helper.make_node("Flatten", ["mean"], ["flat"]))
        nodes.append(helper.make_node("MatMul", ["flat", "weights"], ["embedding"]))
    graph = helper.make_graph(
        nodes,
        "teacher",
        [helper.make_tensor_value_info("images", kind, [batch, 3, side, side])],
        [helper.make_tensor_value_info("embedding", kind, [batch, size] if output and not shape else None)],
        constants,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


@pytest.mark.parametrize("batch", ["B", 1, 3])
@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.FLOAT16])
def test_it_gives_normalised_embeddings_of_any_number_of_images(tmp_path, batch, kind):
    teacher = OnnxTeacher(16, CPU)
    teacher.load(write(tmp_path / "t.onnx", batch=batch, kind=kind))
    images = torch.rand(7, 3, 112, 112) * 2 - 1
    images = images.contiguous(memory_format=torch.channels_last)
    expected = F.normalize(images.mean((2, 3)) @ torch.from_numpy(WEIGHTS), dim=1)
    ours = teacher(images)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4 if kind == TensorProto.FLOAT else 2e-1)
    assert torch.allclose(ours.norm(dim=1), torch.ones(7))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"size": 8},
            r"embeddings of two images are \(2, 8\) in the file and \(2, 16\) in the config; check embedding_size",
        ),
        ({"size": 8, "output": False}, r"embeddings of two images are \(2, 8\) in the file and \(2, 16\)"),
        ({"shape": (2, 3, -1)}, r"embeddings of two images are \(2, 3, 1\) in the file and \(2, 16\)"),
        ({"shape": (-1,)}, r"embeddings of two images are \(6,\) in the file and \(2, 16\)"),
        ({"weights": WEIGHTS * np.nan}, "its embedding of a grey image is not finite"),
        ({"side": 224}, r"a teacher's one input is \(B, 3, 112, 112\), it has images \['B', 3, 224, 224\]"),
    ],
)
def test_another_shape_names_the_file_and_both(tmp_path, fields, message):
    with pytest.raises(UserError, match=rf"t\.onnx: .*{message}"):
        OnnxTeacher(16, CPU).load(write(tmp_path / "t.onnx", **fields))


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b[:20] + b"\xff" * 9 + b[29:]])
def test_a_damaged_file_is_one_line(tmp_path, damage):
    path = write(tmp_path / "t.onnx")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=r"t\.onnx: ") as refused:
        OnnxTeacher(16, CPU).load(path)
    assert "\n" not in str(refused.value)


def test_a_pipe_or_a_folder_is_named(tmp_path):
    os.mkfifo(tmp_path / "t.onnx")
    for path, kind in ((tmp_path / "t.onnx", "a pipe"), (tmp_path, "a folder")):
        with pytest.raises(UserError, match=rf"{path.name}: is not a regular file \({kind}\)"):
            OnnxTeacher(16, CPU).load(path)


def test_a_missing_file_and_a_missing_runtime(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"none\.onnx: no such teacher"):
        OnnxTeacher(16, CPU).load(tmp_path / "none.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match="needs ONNX Runtime: pip install onnxruntime"):
        OnnxTeacher(16, CPU).load(write(tmp_path / "t.onnx"))
