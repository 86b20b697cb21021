"""Export to Core ML's .mlpackage, for Apple's systems."""

import copy
import logging
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from deploy.exporting.network import INPUT, OUTPUT, ExportNetwork
from deploy.networks.metadata import METADATA_KEY


class CoreMlConversion:
    """A network as a Core ML program for iOS 16 and macOS 13 or later, for one image at a time.

    Pixels come in as an image; its scaling is a part of the program. fp16 computes in float16 on the device.
    """

    def __init__(
        self, network: ExportNetwork, precision: str, faces: NDArray[np.uint8] | None = None, controlled: bool = False
    ) -> None:
        """See `OnnxConversion`."""
        logging.getLogger("coremltools").setLevel(logging.ERROR)  # it warns that it does not know this torch
        import coremltools as ct

        floats = copy.copy(network)  # shares the layers
        floats.interface = replace(network.interface, uint8=False)
        example = floats.interface.example(1)
        images = (
            ct.ImageType(INPUT, example.shape, scale=1 / 127.5, bias=[-1] * 3, color_layout=ct.colorlayout.RGB)
            if network.interface.uint8
            else ct.TensorType(INPUT, example.shape)
        )
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            traced = torch.jit.trace(floats, example, check_trace=False)
            self.model = ct.convert(
                traced, inputs=[images], outputs=[ct.TensorType(OUTPUT)], convert_to="mlprogram",
                compute_precision=ct.precision.FLOAT16 if precision == "fp16" else ct.precision.FLOAT32,
                minimum_deployment_target=ct.target.iOS16, skip_model_load=True,
            )  # fmt: skip

    def save(self, path: Path, metadata: str = "") -> None:
        """Writes the folder .mlpackage. Raises OSError."""
        self.model.user_defined_metadata[METADATA_KEY] = metadata
        if path.exists():
            shutil.rmtree(path)
        self.model.save(str(path))
