"""deploy/conversion/tiny_weights.py: weights near zero become zero, and nothing else changes."""

import numpy as np
import onnx
from onnx import numpy_helper

from deploy.conversion.tiny_weights import drop_tiny_weights


def test_tiny_weights_become_zero():
    weights = {
        "floats": np.array([1, -2e-20, -1e-21, 1e-45, 0], np.float32),
        "halves": np.array([1e-7, 2], np.float16),
        "sizes": np.array([0, -1]),
    }
    tensors = [numpy_helper.from_array(values, name) for name, values in weights.items()]
    graph = onnx.helper.make_graph([], "graph", [], [], tensors)
    model = onnx.load_from_string(drop_tiny_weights(onnx.helper.make_model(graph).SerializeToString()))
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    expected = weights | {"floats": np.array([1, -2e-20, 0, 0, 0], np.float32)}
    for name, values in expected.items():
        assert found[name].dtype == values.dtype and (found[name] == values).all()
