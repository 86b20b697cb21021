"""The detector's networks give the same outputs as ONNX."""

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest

from data.alignment.blazeface import find_networks
from deploy.exporting.converters.openvino_to_onnx import convert_to_onnx
from utils.errors import UserError


@pytest.mark.parametrize("path", find_networks(), ids=lambda path: path.stem)
def test_a_network_of_the_detector(path):
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    core = openvino.Core()
    original = core.compile_model(core.read_model(path), "CPU", settings)
    session = onnxruntime.InferenceSession(convert_to_onnx(path))
    (images,) = session.get_inputs()
    pixels = np.random.default_rng(0).uniform(-1, 1, images.shape).astype(np.float32)
    expected = original(pixels)
    outputs = session.run(None, {images.name: pixels})
    assert len(outputs) == len(expected) == 2
    for port, output in zip(session.get_outputs(), outputs, strict=True):
        assert np.abs(expected[port.name]).max() > 5
        np.testing.assert_allclose(output, expected[port.name], rtol=0, atol=1e-3)  # pixels, logits


def test_an_operation_that_is_not_known(tmp_path):
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 4]) for name in "xy"]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Erf", ["x"], ["y"])], "graph", values[:1], values[1:])
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), tmp_path / "erf.onnx")
    with pytest.raises(UserError, match="its operation Erf cannot be written as ONNX"):
        convert_to_onnx(tmp_path / "erf.onnx")
