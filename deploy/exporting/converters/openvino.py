"""Export to OpenVINO's IR: a file .xml with the operations and a file .bin with the weights beside it."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deploy.exporting.converters.onnx import convert_to_onnx
from deploy.exporting.converters.onnx_passes import slim
from deploy.exporting.network import ExportNetwork
from deploy.networks.metadata import METADATA_KEY
from utils.openvino_core import import_openvino, openvino_core


class OpenVinoConversion:
    """A network as OpenVINO's IR, converted from its ONNX.

    Its batch is free. fp16 stores the weights in float16; OpenVINO computes in float32.
    """

    def __init__(
        self, network: ExportNetwork, precision: str, faces: NDArray[np.uint8] | None = None, controlled: bool = False
    ) -> None:
        """See `OnnxConversion`."""
        from openvino._offline_transformations import apply_moc_transformations

        model = convert_to_onnx(network, precision, faces, controlled)
        slim(model)
        self.model = openvino_core().read_model(model.SerializeToString())
        apply_moc_transformations(self.model, cf=True)  # half the operations remain
        self._half = precision == "fp16"

    def save(self, path: Path, metadata: str = "") -> None:
        """Writes both files. Raises OSError."""
        self.model.set_rt_info(metadata, METADATA_KEY)
        try:
            import_openvino().save_model(self.model, path, compress_to_fp16=self._half)
        except RuntimeError as error:  # OpenVINO's for a full disk
            raise OSError(str(error).strip().splitlines()[-1]) from None
