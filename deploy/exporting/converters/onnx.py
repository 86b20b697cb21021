"""Export to ONNX."""

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from deploy.exporting.converters.onnx_passes import replace_prelus, shape_slopes, slim, store_as_float16
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
        self.model = convert_to_onnx(network, precision, faces, controlled)
        replace_prelus(self.model)
        if precision == "fp16":
            store_as_float16(self.model)
        slim(self.model)

    def save(self, path: Path, metadata: str = "") -> None:
        """Writes the file. Raises OSError."""
        import onnx

        onnx.helper.set_model_props(self.model, {METADATA_KEY: metadata} if metadata else {})
        write_atomic(path, lambda file: file.write(self.model.SerializeToString()))


def convert_to_onnx(network: ExportNetwork, precision: str, faces: NDArray[np.uint8] | None, controlled: bool) -> Any:
    """Returns the network as an onnx.ModelProto, quantised for int8. See `OnnxConversion` for the arguments."""
    model = trace(network)
    if precision != "int8":
        return model
    assert faces is not None
    return quantise(model, network.interface, faces, controlled)


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
    shape_slopes(model)
    return model
