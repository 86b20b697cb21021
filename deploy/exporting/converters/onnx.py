"""Export to ONNX."""

import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from deploy.exporting.converters.quantisation import quantise
from deploy.exporting.network import INPUT, OUTPUT, ExportNetwork
from deploy.networks.metadata import METADATA_KEY
from utils.filesystem import write_atomic

OPSET = 17


class OnnxConversion:
    """A network as ONNX.

    Its batch is free. fp16 stores the weights in float16; the arithmetic stays float32, because CPUs have no faster.
    """

    def __init__(
        self, network: ExportNetwork, precision: str, faces: NDArray[np.uint8] | None = None, controlled: bool = False
    ) -> None:
        """faces: (N, 112, 112, 3) to calibrate int8 with. controlled: whether accuracy control picks float layers."""
        self.model = trace(network)
        if precision == "int8":
            assert faces is not None
            self.model = quantise(self.model, network.interface, faces, controlled)
        elif precision == "fp16":
            store_as_float16(self.model)
        slim(self.model)

    def save(self, path: Path, metadata: str = "") -> None:
        """Writes the file. Raises OSError."""
        import onnx

        onnx.helper.set_model_props(self.model, {METADATA_KEY: metadata} if metadata else {})
        write_atomic(path, lambda file: file.write(self.model.SerializeToString()))


def trace(network: ExportNetwork) -> Any:
    """Returns the network as an onnx.ModelProto.

    Uses torch's exporter by TorchScript: the newer one needs another package, and takes ten times as long.
    """
    import onnx

    file = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            network, (network.interface.example(2),), file, dynamo=False,  # type: ignore[arg-type]  # streams are taken
            opset_version=OPSET, input_names=[INPUT],
            output_names=[OUTPUT], dynamic_axes={INPUT: {0: "batch"}, OUTPUT: {0: "batch"}},
        )  # fmt: skip
    model = onnx.load_from_string(file.getvalue())
    # The exporter does not know the size of an embedding.
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = network.interface.embedding_size
    return model


def store_as_float16(model: Any) -> None:
    """Stores the weights in float16, each with an operator that casts it to float32; runtimes apply it once."""
    import onnx

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
    import onnx

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
