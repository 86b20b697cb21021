"""Runs exported networks: ONNX with ONNX Runtime, OpenVINO's IR, LiteRT's .tflite."""

import zipfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.networks.metadata import METADATA_FILE, METADATA_KEY, parse_metadata
from utils.datasets.alignment import SIZE
from utils.errors import UserError, shorten
from utils.filesystem import path_exists
from utils.openvino_core import FLOAT32_SETTINGS, import_openvino, openvino_core

_BATCH = 4  # faces per call: few enough for the caches of the CPU


@dataclass(frozen=True)
class ExportedNetwork:
    """A network in a file.

    Attributes:
        shape: of one input, (3, 112, 112) or (112, 112, 3).
        is_uint8: whether inputs are pixels from 0 to 255, else floats from -1 to 1.
        metadata: of `deploy.networks.metadata`; empty for files of other projects.
        run: maps inputs (B, *shape) to embeddings (B, D) float32.
    """

    shape: tuple[int, ...]
    is_uint8: bool
    embedding_size: int
    metadata: dict[str, Any]
    run: Callable[[NDArray[Any]], NDArray[np.float32]]

    def __call__(self, faces: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Maps aligned faces (N, 112, 112, 3) uint8 RGB to embeddings (N, D) float32, in batches."""
        parts = [self.run(self.to_input(faces[start : start + _BATCH])) for start in range(0, len(faces), _BATCH)]
        return np.concatenate(parts)

    def to_input(self, faces: NDArray[np.uint8]) -> NDArray[Any]:
        """Converts faces (B, 112, 112, 3) uint8 RGB to inputs (B, *shape)."""
        return to_input(faces, self.shape, self.is_uint8)


def to_input(faces: NDArray[np.uint8], shape: tuple[int, ...], is_uint8: bool) -> NDArray[Any]:
    """Converts faces (B, 112, 112, 3) uint8 RGB to inputs (B, *shape): pixels, or floats from -1 to 1."""
    pixels: NDArray[Any] = faces if is_uint8 else (faces.astype(np.float32) / 255 - 0.5) / 0.5
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2) if shape[0] == 3 else pixels)


def open_exported(path: Path, threads: int = 0) -> ExportedNetwork:
    """Opens an exported file. threads: of one call; 0: as many as the runtime chooses.

    Raises UserError if the file is damaged or holds another kind of network, or its runtime is not installed.
    """
    if not path_exists(path.is_file):
        raise UserError(f"{path}: no such file", fix="name an exported network")
    package, opener = RUNTIMES[path.suffix]
    if not find_spec(package):
        raise UserError(f"{path}: needs {package}", fix="pip install -r requirements-deploy.txt")
    try:
        network = opener(path, threads)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None
    if network.shape not in ((3, SIZE, SIZE), (SIZE, SIZE, 3)) or network.embedding_size < 1:
        raise UserError(
            f"{path}: has an input of {'×'.join(map(str, network.shape))} and {network.embedding_size or 'several'} "
            f"outputs, expected {SIZE}×{SIZE} RGB pixels and one embedding",
            fix="name a network of python -m deploy.export",
        )
    return network


def _open_onnx(path: Path, threads: int) -> ExportedNetwork:
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as errors

    damage = (errors.Fail, errors.InvalidArgument, errors.InvalidGraph, errors.InvalidProtobuf, errors.NotImplemented)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # fatal only: other errors are raised
    try:
        session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    except (*damage, RuntimeError) as error:
        raise _damaged(path, error) from None
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if len(inputs) != 1 or not _takes_images(inputs[0]):
        found = ", ".join(f"{port.type} {port.shape}" for port in inputs)
        raise UserError(
            f"{path}: has the inputs {found:.200}, expected one of floats or uint8 with a free batch",
            fix="name a network of python -m deploy.export",
        )
    images = inputs[0]
    step = 1 if images.shape[0] == 1 else _BATCH
    metadata = parse_metadata(session.get_modelmeta().custom_metadata_map.get(METADATA_KEY, ""), path)

    def run(batch: NDArray[Any]) -> NDArray[np.float32]:
        parts = [batch[start : start + step] for start in range(0, len(batch), step)]
        return np.concatenate([session.run([outputs[0].name], {images.name: part})[0] for part in parts])

    return ExportedNetwork(
        shape=_sizes(images.shape),
        is_uint8=images.type == "tensor(uint8)",
        embedding_size=_embedding_size([output.shape for output in outputs]),
        metadata=metadata,
        run=run,
    )


def _takes_images(port: Any) -> bool:
    """Whether an input of ONNX Runtime is of floats or uint8, with a batch that is free or 1."""
    batch = port.shape[0] if port.shape else 0
    return port.type in ("tensor(uint8)", "tensor(float)") and (batch == 1 or not isinstance(batch, int))


def _open_openvino(path: Path, threads: int) -> ExportedNetwork:
    openvino = import_openvino()
    from openvino.frontend import FrontEndManager

    options = {**FLOAT32_SETTINGS, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
    try:
        reader = FrontEndManager().load_by_framework("ir")  # core.read_model would try other formats, with complaints
        model = reader.convert(reader.load(str(path)))
        shape = model.input(0).partial_shape
        shape[0] = 1  # one image a call: with a free batch a call takes 1.4 times as long
        model.reshape(shape)
        compiled = openvino_core().compile_model(model, "CPU", options)
        images = compiled.input(0)
    except (IndexError, RuntimeError) as error:
        raise _damaged(path, error) from None
    input_shape, *output_shapes = (
        [side.get_length() if side.is_static else None for side in port.partial_shape]
        for port in (images, *compiled.outputs)
    )
    text = str(model.get_rt_info(METADATA_KEY).value) if model.has_rt_info(METADATA_KEY) else ""
    return ExportedNetwork(
        shape=_sizes(input_shape),
        is_uint8=images.element_type == openvino.Type.u8,
        embedding_size=_embedding_size(output_shapes),
        metadata=parse_metadata(text, path),
        run=lambda batch: np.concatenate([compiled(row[np.newaxis])[0] for row in batch]),
    )


def _open_litert(path: Path, threads: int) -> ExportedNetwork:
    from ai_edge_litert.interpreter import Interpreter

    try:
        interpreter = Interpreter(str(path), num_threads=threads or None)
        interpreter.allocate_tensors()
        with zipfile.ZipFile(path) if zipfile.is_zipfile(path) else nullcontext() as archive:
            text = archive.read(METADATA_FILE).decode() if archive else ""
    except (RuntimeError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise _damaged(path, error) from None
    images, outputs = interpreter.get_input_details()[0], interpreter.get_output_details()

    def run(batch: NDArray[Any]) -> NDArray[np.float32]:
        rows = []
        for row in batch:  # such a file takes one image at a time
            interpreter.set_tensor(images["index"], row[np.newaxis])
            interpreter.invoke()
            rows.append(interpreter.get_tensor(outputs[0]["index"]))
        return np.concatenate(rows)

    return ExportedNetwork(
        shape=_sizes(images["shape"].tolist()),
        is_uint8=images["dtype"] == np.uint8,
        embedding_size=_embedding_size([output["shape"].tolist() for output in outputs]),
        metadata=parse_metadata(text, path),
        run=run,
    )


RUNTIMES: dict[str, tuple[str, Callable[[Path, int], ExportedNetwork]]] = {
    ".onnx": ("onnxruntime", _open_onnx),
    ".xml": ("openvino", _open_openvino),
    ".tflite": ("ai_edge_litert", _open_litert),
}


def _sizes(shape: Sequence[Any]) -> tuple[int, ...]:
    """Returns the shape of one input, without the batch; 0 for sizes that are not fixed."""
    return tuple(side if isinstance(side, int) else 0 for side in shape[1:])


def _embedding_size(shapes: Sequence[Sequence[Any]]) -> int:
    """Returns the size of the only output (B, D), 0 for other outputs."""
    (sizes,) = [_sizes(shape) for shape in shapes] if len(shapes) == 1 else [()]
    return sizes[0] if len(sizes) == 1 else 0


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(
        f"{path}: cannot be opened ({shorten(str(error).strip().splitlines()[-1], 100, quote=False)})",
        fix="export it again",
    )
