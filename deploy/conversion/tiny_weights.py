"""Sets weights to zero that are too small to change an output."""

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

# Training with weight decay leaves channels with weights from 1e-45 to 1e-20. Their products are denormal numbers, with
# which CPUs compute many times as slowly. Runtimes can count them as zero, but not in WebAssembly.
MIN_WEIGHT = 1e-20


def drop_tiny_weights(content: bytes) -> bytes:
    """Returns an ONNX file in which weights of float32 below MIN_WEIGHT are zero."""
    model = onnx.load_from_string(content)
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            values = numpy_helper.to_array(tensor)
            values = np.where(np.abs(values) < MIN_WEIGHT, np.float32(0), values)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return model.SerializeToString()
