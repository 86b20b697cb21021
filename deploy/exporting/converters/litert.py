"""Export to LiteRT's .tflite, for Android and other small systems."""

import logging
import zipfile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from deploy.exporting.network import ExportNetwork
from deploy.networks.metadata import METADATA_FILE


class LiteRtConversion:
    """A network as .tflite, for one image at a time.

    litert-torch cannot convert a network with a free batch: the tail's flatten needs a known size. Its int8 weights
    (dynamic range) took twice as long as float32, so there is fp32 alone.
    """

    def __init__(
        self, network: ExportNetwork, precision: str, faces: NDArray[np.uint8] | None = None, controlled: bool = False
    ) -> None:
        """See `OnnxConversion`."""
        import litert_torch

        logging.getLogger("jax").setLevel(logging.ERROR)
        with torch.no_grad():
            self.model = litert_torch.convert(network, (network.interface.example(1),))

    def save(self, path: Path, metadata: str = "") -> None:
        """Writes the file. The metadata are in a ZIP archive at its end, where TensorFlow Lite keeps them.

        Raises OSError.
        """
        self.model.export(str(path))
        if metadata:
            with zipfile.ZipFile(path, "a") as archive:
                archive.writestr(METADATA_FILE, metadata)
