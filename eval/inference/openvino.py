"""OpenVINO as the runtime of evaluation on a CPU: five times as fast as PyTorch there, in float32 as well.

Optional: where it is not installed, PyTorch serves.
"""

import importlib.util
import sys
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from utils.datasets.transforms import SIZE, normalise


class OpenVinoRuntime:
    """A copy of a backbone, as it is now."""

    batch = 256  # images handed over at a time
    _at_once = 2  # images of a request: a few fit the processor's cache, and more of them are slower

    def __init__(self, backbone: nn.Module) -> None:
        openvino = _import_openvino()
        # One stream a core. "f32": by default OpenVINO rounds to bfloat16 where the processor has it.
        threads = torch.get_num_threads()
        options = {
            "INFERENCE_PRECISION_HINT": "f32",
            "NUM_STREAMS": threads,
            "INFERENCE_NUM_THREADS": threads,
            "ENABLE_CPU_PINNING": False,  # or several processes would share the first cores
        }
        compiled = openvino.Core().compile_model(_convert(backbone, self._at_once), "CPU", options)
        self._size = compiled.output(0).shape[1]
        self._queue = openvino.AsyncInferQueue(compiled)
        self._queue.set_callback(self._take)
        self._embeddings = np.empty((0, 2, 0), np.float32)

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(B, 112, 112, 3) uint8 RGB -> embeddings (B, D) of the images and (B, D) of their mirror images, float32."""
        step = self._at_once
        padded = np.concatenate([images, np.zeros((-len(images) % step, SIZE, SIZE, 3), np.uint8)])
        self._embeddings = np.empty((len(padded), 2, self._size), np.float32)
        for start in range(0, len(padded), step):
            self._queue.start_async({0: padded[start : start + step]}, start)
        self._queue.wait_all()
        direct, flipped = self._embeddings[: len(images)].swapaxes(0, 1)
        return direct.copy(), flipped.copy()

    def _take(self, request: Any, start: int) -> None:
        both = request.get_output_tensor().data.reshape(2, self._at_once, self._size)
        self._embeddings[start : start + self._at_once] = both.swapaxes(0, 1)


class _BothWays(nn.Module):
    """Pixels in, embeddings of the images and then of their mirror images out."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> Tensor:
        """(B, 112, 112, 3) uint8 -> (2B, D)."""
        pixels = normalise(images)  # (B, 3, 112, 112)
        return self.backbone(torch.cat([pixels, pixels.flip(3)]))


def is_installed() -> bool:
    """Whether there is an OpenVINO to import."""
    return importlib.util.find_spec("openvino") is not None


def _import_openvino() -> Any:
    """OpenVINO without its telemetry: else the import alone reports to its makers, and leaves ~/intel behind."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # as if it were not installed
    import openvino

    return openvino


def _convert(backbone: nn.Module, batch: int) -> Any:
    """The OpenVINO network of a backbone, for batches of that many images.

    By OpenVINO's front end for PyTorch, not by `openvino.convert_model`, which reports its use to its makers.
    """
    openvino = _import_openvino()
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    shape = (batch, SIZE, SIZE, 3)
    was_training = backbone.training
    both_ways = _BothWays(backbone).eval()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore", DeprecationWarning)  # of TorchScript, which is how OpenVINO reads a network
        traced = torch.jit.trace(both_ways, torch.zeros(shape, dtype=torch.uint8), check_trace=False)
        frozen = torch.jit.freeze(traced)
    backbone.train(was_training)
    front_end = FrontEndManager().load_by_framework("pytorch")
    decoder = TorchScriptPythonDecoder(frozen)  # has to outlive the conversion
    model = front_end.convert(front_end.load(decoder))
    images = model.inputs[0].get_node()
    images.set_element_type(openvino.Type.u8)
    images.set_partial_shape(openvino.PartialShape(list(shape)))
    model.validate_nodes_and_infer_types()
    return model
