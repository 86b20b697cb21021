"""Writes a network that OpenVINO has read, from a .tflite file for example, as ONNX.

Knows the operations of the face detector and the face mesh. Needs no TensorFlow: OpenVINO reads the file, and each of
its operations becomes the ONNX operation of the same meaning. Constants stay as they are; runtimes fold them.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from deploy.exporting.converters.onnx_passes import replace_prelus
from utils.errors import UserError
from utils.openvino_core import openvino_core

_OPSET, _IR_VERSION = 17, 8
Node = Any  # openvino.Node


def convert_to_onnx(path: Path) -> bytes:
    """Returns the content of an ONNX file with the inputs and outputs of a network in a file that OpenVINO reads.

    Raises UserError if the network has an operation that is not known here.
    """
    model = openvino_core().read_model(path)
    constants: list[TensorProto] = []
    nodes: list[NodeProto] = []
    for node in model.get_ordered_ops():
        kind = node.get_type_name()
        if kind == "Constant":
            constants.append(numpy_helper.from_array(np.ascontiguousarray(node.data), node.get_friendly_name()))
        elif kind not in ("Parameter", "Result"):
            if kind not in _WRITERS:
                raise UserError(f"{path}: its operation {kind} cannot be written as ONNX")
            nodes += _WRITERS[kind](node)
    nodes += [helper.make_node("Identity", _sources(port.get_node()), [port.any_name]) for port in model.outputs]
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        path.stem,
        [_describe(port, port.get_node().get_friendly_name()) for port in model.inputs],
        [_describe(port, port.any_name) for port in model.outputs],
        [constant for constant in constants if constant.name in used],
    )  # fmt: skip
    written = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)
    replace_prelus(written)
    onnx.checker.check_model(written, full_check=True)
    return written.SerializeToString()


def _describe(port: Any, name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [int(side) for side in port.get_shape()])


def _sources(node: Node) -> list[str]:
    """Returns the names of the tensors that a node takes."""
    return [port.get_source_output().get_node().get_friendly_name() for port in node.inputs()]


def _constant(node: Node, index: int) -> list[int]:
    """Returns the values of an input that is a constant."""
    return np.ravel(node.input(index).get_source_output().get_node().data).tolist()


def _make(kind: str, node: Node, inputs: list[str], **attributes: Any) -> list[NodeProto]:
    return [helper.make_node(kind, inputs, [node.get_friendly_name()], **attributes)]


def _as(kind: str) -> Callable[[Node], list[NodeProto]]:
    """Returns a writer for an operation that takes the same inputs in ONNX and has no attributes there."""
    return lambda node: _make(kind, node, _sources(node))


def _window(node: Node) -> dict[str, Any]:
    """Returns the strides, dilations and padding of a convolution or a pooling, as attributes of ONNX."""
    given = node.get_attributes()
    return {
        "strides": given["strides"], "dilations": given["dilations"], "pads": given["pads_begin"] + given["pads_end"],
    }  # fmt: skip


def _convolution(node: Node) -> list[NodeProto]:
    return _make("Conv", node, _sources(node), **_window(node))


def _group_convolution(node: Node) -> list[NodeProto]:
    """Writes weights (groups, outputs, inputs, height, width) as (groups · outputs, inputs, height, width)."""
    images, weights = _sources(node)
    groups, outputs, *sizes = node.input(1).get_shape()
    shape, flat = f"{node.get_friendly_name()}_shape", f"{node.get_friendly_name()}_weights"
    values = numpy_helper.from_array(np.array([groups * outputs, *sizes], np.int64), shape)
    return [
        helper.make_node("Constant", [], [shape], value=values),
        helper.make_node("Reshape", [weights, shape], [flat]),
        *_make("Conv", node, [images, flat], group=groups, **_window(node)),
    ]


def _max_pool(node: Node) -> list[NodeProto]:
    return _make("MaxPool", node, _sources(node), kernel_shape=node.get_attributes()["kernel"], **_window(node))


def _pad(node: Node) -> list[NodeProto]:
    images, _, _, value = _sources(node)
    name = f"{node.get_friendly_name()}_pads"
    pads = numpy_helper.from_array(np.array(_constant(node, 1) + _constant(node, 2), np.int64), name)
    return [helper.make_node("Constant", [], [name], value=pads), *_make("Pad", node, [images, name, value])]


def _reshape(node: Node) -> list[NodeProto]:
    return _make("Reshape", node, _sources(node), allowzero=int(not node.get_attributes()["special_zero"]))


_WRITERS: dict[str, Callable[[Node], list[NodeProto]]] = {
    "Add": _as("Add"),
    "Relu": _as("Relu"),
    "PRelu": _as("PRelu"),
    "Unsqueeze": _as("Unsqueeze"),
    "Convolution": _convolution,
    "GroupConvolution": _group_convolution,
    "MaxPool": _max_pool,
    "Pad": _pad,
    "Reshape": _reshape,
    "Transpose": lambda node: _make("Transpose", node, _sources(node)[:1], perm=_constant(node, 1)),
    "Concat": lambda node: _make("Concat", node, _sources(node), axis=node.get_attributes()["axis"]),
    "Convert": lambda node: _make("Cast", node, _sources(node), to=TensorProto.FLOAT),
}
