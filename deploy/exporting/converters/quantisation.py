"""Quantisation of an ONNX network to int8 by NNCF."""

import logging
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.exporting.network import INPUT, Interface
from deploy.exporting.proof import row_cosines
from deploy.networks.exported import to_input
from utils.openvino_core import import_openvino

Item = dict[str, NDArray[Any]]  # name of the input -> one image

# The operators that give embeddings length 1. In int8 their length would differ from 1 by several percent.
_NORMALISATION = ["ReduceL2", "Clip", "Expand", "Div"]
# Accuracy control keeps layers in float until the embeddings of the calibration faces are this similar to those of the
# float network. The verification set takes no part, so that its accuracy remains a test.
CONTROL_COSINE = 0.995
_N_CONTROL = 64  # faces on which accuracy control measures each layer


def quantise(model: Any, interface: Interface, faces: NDArray[np.uint8], controlled: bool) -> Any:
    """Returns an onnx.ModelProto with weights and activations in int8.

    faces: (N, 112, 112, 3) uint8 RGB, whose activations give the ranges. controlled: whether NNCF's accuracy control
    keeps sensitive layers in float, which takes many times as long.
    """
    import_openvino()  # NNCF imports OpenVINO, with its telemetry if that is not switched off before
    import nncf

    nncf.set_log_level(logging.ERROR)
    items = [{INPUT: to_input(face[np.newaxis], interface.shape, interface.uint8)} for face in faces]
    options: dict[str, Any] = {
        "subset_size": len(items),
        "ignored_scope": nncf.IgnoredScope(types=_NORMALISATION, validate=False),
    }
    if not controlled:
        return nncf.quantize(model, nncf.Dataset(items), **options)
    control = [(item, _run(model, [item])[0]) for item in items[:: max(1, len(items) // _N_CONTROL)]]
    return nncf.quantize_with_accuracy_control(
        model, nncf.Dataset(items), nncf.Dataset(control), _measure, max_drop=1 - CONTROL_COSINE, **options
    )


def _measure(model: Any, pairs: Iterable[tuple[Item, NDArray[np.float32]]]) -> tuple[float, list[float]]:
    """Returns the mean cosine of a model's embeddings to the expected ones, and the cosine of each.

    pairs: inputs of one image with the expected embedding (D,).
    """
    items, expected = zip(*pairs, strict=True)
    cosines = row_cosines(_run(model, items), np.stack(expected)).tolist()
    return float(np.mean(cosines)), cosines


def _run(model: Any, items: Sequence[Item]) -> NDArray[np.float32]:
    """Returns the embeddings (N, D) of N inputs."""
    import onnxruntime

    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, item)[0] for item in items])
