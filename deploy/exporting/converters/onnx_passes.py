"""Changes to the graph of an ONNX model that keep what it computes: for speed and for size."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx


def shape_slopes(model: Any) -> None:
    """Gives the slopes of PReLU as many dimensions as its inputs have: (C, 1, 1) becomes (1, C, 1, 1).

    With fewer, OpenVINO keeps activations in another layout than convolutions, and converts them twice for each PReLU:
    on CPUs with AVX-512 a third of the time of one image.
    """
    slopes = {node.input[1] for node in model.graph.node if node.op_type == "PRelu"}
    for tensor in model.graph.initializer:
        if tensor.name in slopes and len(tensor.dims) == 3:
            tensor.dims.insert(0, 1)


def replace_prelus(model: Any) -> None:
    """Computes each PReLU whose slopes are 1 or less as max(x, slope · x), which gives the same numbers.

    ONNX Runtime has vector instructions for these two operations, not for PReLU: with PRelu, PocketNetS-128 takes more
    than twice as long.
    """
    slopes = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = []
    for node in model.graph.node:
        slope = slopes.get(node.input[1]) if node.op_type == "PRelu" else None
        if slope is None or onnx.numpy_helper.to_array(slope).max() > 1:
            nodes.append(node)
            continue
        product = f"{node.output[0]}.product"
        nodes.append(onnx.helper.make_node("Mul", node.input, [product]))
        nodes.append(onnx.helper.make_node("Max", [node.input[0], product], node.output))
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def store_as_float16(model: Any) -> None:
    """Stores the weights in float16, each with an operator that casts it to float32; runtimes apply it once."""
    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) > 0:
            name, half = tensor.name, f"{tensor.name}.float16"
            values = onnx.numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, half))
            casts.append(onnx.helper.make_node("Cast", [half], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def slim(model: Any) -> None:
    """Gives tensors short names, merges equal ones, and drops the names and remarks of nodes: a third of an int8 file.

    Raises onnx.checker.ValidationError if the model is not valid afterwards.
    """
    graph = model.graph
    names = _short_names()
    renamed = {value.name: value.name for value in (*graph.input, *graph.output)} | {"": ""}
    first: dict[bytes, str] = {}  # content of each distinct tensor -> its name
    kept = []
    for tensor in graph.initializer:
        name, tensor.name = tensor.name, ""
        tensor.ClearField("doc_string")
        content = tensor.SerializeToString()
        if content not in first:
            first[content] = tensor.name = next(names)
            kept.append(onnx.TensorProto.FromString(tensor.SerializeToString()))
        renamed[name] = first[content]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    for node in graph.node:
        for field in ("name", "doc_string", "metadata_props"):
            node.ClearField(field)
        for values in (node.input, node.output):
            values[:] = [
                renamed[value] if value in renamed else renamed.setdefault(value, next(names)) for value in values
            ]
    del graph.value_info[:]
    onnx.checker.check_model(model, full_check=True)


def _short_names() -> Iterator[str]:
    """Yields 0, 1, …, z, 10, … in base 36."""
    number = 0
    while True:
        yield np.base_repr(number, 36).lower()
        number += 1
