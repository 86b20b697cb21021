"""OpenVINO runtime for evaluation on CPUs: five times as fast as PyTorch, also in float32.

Optional: without OpenVINO, PyTorch is used.
"""

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from backbones.folding import fold
from utils.datasets.alignment import SIZE
from utils.datasets.transforms import normalise
from utils.distributed.precision import flushes_denormals
from utils.openvino_core import FLOAT32_SETTINGS, import_openvino, openvino_core


class OpenVinoRuntime:
    """Runs a copy of a backbone, converted once with its present weights. See `embedding.Runtime`."""

    batch = 256  # images per call
    _images_per_request = 2  # few enough for the CPU cache: more are slower

    def __init__(self, backbone: nn.Module) -> None:
        threads = torch.get_num_threads()
        options = {
            **FLOAT32_SETTINGS,
            "NUM_STREAMS": threads,  # one per core
            "INFERENCE_NUM_THREADS": threads,
            # Trained weights hold thousands of numbers so small that products leave float32's normal range, on which
            # Intel CPUs take three times as long for the whole network. They count as zero.
            "CPU_DENORMALS_OPTIMIZATION": True,
        }
        flush = flushes_denormals()
        compiled = openvino_core().compile_model(_convert(backbone, self._images_per_request), "CPU", options)
        torch.set_flush_denormal(flush)  # OpenVINO's threads keep their setting; this one computes as before
        self._embedding_size = compiled.output(0).shape[1]
        self._queue = import_openvino().AsyncInferQueue(compiled)

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(B, 112, 112, 3) uint8 RGB -> embeddings (B, D) of the images and (B, D) of their hflips, float32."""
        step, size = self._images_per_request, self._embedding_size
        padded = np.concatenate([images, np.zeros((-len(images) % step, SIZE, SIZE, 3), np.uint8)])
        embeddings = np.empty((len(padded), 2, size), np.float32)

        def store(request: Any, start: int) -> None:  # without self: the queue keeps it, and would keep itself alive
            embeddings[start : start + step] = request.get_output_tensor().data.reshape(2, step, size).swapaxes(0, 1)

        self._queue.set_callback(store)
        for start in range(0, len(padded), step):
            self._queue.start_async({0: padded[start : start + step]}, start)
        self._queue.wait_all()
        direct, flipped = embeddings[: len(images)].swapaxes(0, 1)
        return direct.copy(), flipped.copy()


class _WithFlip(nn.Module):
    """Embeds images and their hflips in one batch."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> Tensor:
        """(B, 112, 112, 3) uint8 RGB -> (2B, D): embeddings of the images, then of their hflips."""
        pixels = normalise(images)  # (B, 3, 112, 112)
        return self.backbone(torch.cat([pixels, pixels.flip(3)]))


def _convert(backbone: nn.Module, batch: int) -> Any:
    """Converts a backbone to an OpenVINO model for batches of that many images.

    Uses OpenVINO's PyTorch front end directly, because `openvino.convert_model` sends telemetry.
    """
    openvino = import_openvino()
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    shape = (batch, SIZE, SIZE, 3)
    with_flip = _WithFlip(fold(backbone)).eval()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript, which OpenVINO reads, is deprecated
        traced = torch.jit.trace(with_flip, torch.zeros(shape, dtype=torch.uint8), check_trace=False)
        frozen = torch.jit.freeze(traced)
    front_end = FrontEndManager().load_by_framework("pytorch")
    decoder = TorchScriptPythonDecoder(frozen)  # must stay alive during the conversion
    model = front_end.convert(front_end.load(decoder))
    _free_traces()
    images = model.inputs[0].get_node()
    images.set_element_type(openvino.Type.u8)
    images.set_partial_shape(openvino.PartialShape(list(shape)))
    model.validate_nodes_and_infer_types()
    return model


def _free_traces() -> None:
    """Frees the networks that were traced, which torch keeps: 60 MB for each conversion of a PocketNetS.

    torch.testing clears the same two tables between tests.
    """
    torch._C._jit_clear_class_registry()
    torch.jit._recursive.concrete_type_store = torch.jit._recursive.ConcreteTypeStore()
