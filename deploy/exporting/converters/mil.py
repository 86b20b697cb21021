"""Computes a saved Core ML program with PyTorch, because Apple's runtime exists on Apple's systems alone.

It checks the weights and the operations of the file, not what an Apple device makes of them: the arithmetic is float32,
also where the device computes in float16. A converted network has a dozen kinds of operations.
"""

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from deploy.networks.exported import ExportedNetwork
from deploy.networks.metadata import METADATA_KEY, parse_metadata
from utils.datasets.alignment import SIZE
from utils.errors import UserError

Arguments = Callable[[str], Any]  # name of an operation's input -> its value, None if it has none


def open_mlpackage(path: Path, threads: int) -> ExportedNetwork:
    """Opens a .mlpackage of this project to be computed with PyTorch. Raises UserError."""
    import coremltools as ct
    from coremltools.converters.mil.frontend.milproto.load import load

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        spec = ct.models.MLModel(str(path), skip_model_load=True).get_spec()
        weights = path / "Data" / "com.apple.CoreML" / "weights"
        program = load(spec, specification_version=spec.specificationVersion, file_weights_dir=str(weights))
    function = program.functions["main"]
    (images,) = spec.description.input
    embedding_size = int(function.outputs[0].shape[1])

    def run(batch: NDArray[Any]) -> NDArray[np.float32]:
        with torch.inference_mode():
            rows = [_compute(function, images.name, torch.from_numpy(row[None]).float()) for row in batch]
        return torch.cat(rows).numpy()

    metadata = parse_metadata(spec.description.metadata.userDefined.get(METADATA_KEY, ""), path)
    is_uint8 = images.type.WhichOneof("Type") == "imageType"
    return ExportedNetwork((3, SIZE, SIZE), is_uint8, embedding_size, metadata, run)


def _compute(function: Any, input_name: str, image: Tensor) -> Tensor:
    """Returns the output (1, D) of a program for one image (1, 3, 112, 112)."""
    values: dict[str, Any] = {input_name: image}

    def value_of(variable: Any) -> Any:
        if variable is None:
            return None
        if isinstance(variable, list | tuple):
            return [value_of(part) for part in variable]
        if variable.name not in values:
            values[variable.name] = _to_tensor(variable.val)
        return values[variable.name]

    for operation in function.operations:
        kind = operation.op_type
        if kind == "const":
            continue
        if kind not in _OPERATIONS:
            raise UserError(
                f"Core ML: the program has an operation {kind}, which deploy/exporting/converters/mil.py does not know"
            )
        arguments = partial(_get, operation.inputs, value_of)
        values[operation.outputs[0].name] = _OPERATIONS[kind](arguments)
    return values[function.outputs[0].name]


def _get(inputs: Any, value_of: Callable[[Any], Any], name: str) -> Any:
    return value_of(inputs.get(name))


def _to_tensor(value: Any) -> Any:
    """Returns numbers as float32 tensors, and lists of integers, texts and truth values as they are."""
    array = np.asarray(value)
    return torch.from_numpy(array.astype(np.float32)) if array.dtype.kind == "f" else value


def _conv(get: Arguments) -> Tensor:
    x, strides, dilations = _pad(get("x"), get, 0.0), _ints(get("strides")), _ints(get("dilations"))
    return F.conv2d(x, get("weight"), get("bias"), strides, 0, dilations, int(get("groups")))


def _max_pool(get: Arguments) -> Tensor:
    return F.max_pool2d(_pad(get("x"), get, -torch.inf), _ints(get("kernel_sizes")), _ints(get("strides")))


def _avg_pool(get: Arguments) -> Tensor:
    kernel, strides = _ints(get("kernel_sizes")), _ints(get("strides"))
    sums = F.avg_pool2d(_pad(get("x"), get, 0.0), kernel, strides)
    if not get("exclude_padding_from_average"):
        return sums
    return sums / F.avg_pool2d(_pad(torch.ones_like(get("x")), get, 0.0), kernel, strides)


def _pad(x: Tensor, get: Arguments, value: float) -> Tensor:
    if get("pad_type") == "valid":
        return x
    top, bottom, left, right = _ints(get("pad"))
    return F.pad(x, (left, right, top, bottom), value=value)


def _batch_norm(get: Arguments) -> Tensor:
    mean, variance, scale, shift = (get(name) for name in ("mean", "variance", "gamma", "beta"))
    return F.batch_norm(get("x"), mean, variance, scale, shift, eps=float(get("epsilon")))


def _slice(get: Arguments) -> Tensor:
    begin, end = _ints(get("begin")), _ints(get("end"))
    stride = _ints(get("stride")) if get("stride") is not None else [1] * len(begin)
    free = [[False] * len(begin) if get(name) is None else list(get(name)) for name in ("begin_mask", "end_mask")]
    parts = zip(begin, end, stride, *free, strict=True)
    return get("x")[tuple(slice(None if b0 else b, None if e0 else e, s) for b, e, s, b0, e0 in parts)]


def _ints(values: Any) -> list[int]:
    return [int(value) for value in values]


_OPERATIONS: dict[str, Callable[[Arguments], Tensor]] = {
    "conv": _conv,
    "linear": lambda get: F.linear(get("x"), get("weight"), get("bias")),
    "relu": lambda get: F.relu(get("x")),
    "leaky_relu": lambda get: F.leaky_relu(get("x"), float(get("alpha"))),  # a PReLU whose slopes are equal
    "prelu": lambda get: F.prelu(get("x"), get("alpha")),
    "add": lambda get: get("x") + get("y"),
    "mul": lambda get: get("x") * get("y"),
    "real_div": lambda get: get("x") / get("y"),
    "maximum": lambda get: torch.maximum(get("x"), torch.as_tensor(get("y"))),
    "concat": lambda get: torch.cat(get("values"), int(get("axis"))),
    "batch_norm": _batch_norm,
    "max_pool": _max_pool,
    "avg_pool": _avg_pool,
    "slice_by_index": _slice,
    "reshape": lambda get: get("x").reshape(_ints(get("shape"))),
    "cast": lambda get: get("x"),
    "reduce_l2_norm": lambda get: get("x").norm(dim=_ints(get("axes")), keepdim=bool(get("keep_dims"))),
    "tile": lambda get: get("x").repeat(_ints(get("reps"))),
}
