"""Teacher in ONNX format, run by ONNX Runtime (optional: pip install onnxruntime, or onnxruntime-gpu)."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from utils.datasets.alignment import SIZE
from utils.distributed.process_group import World
from utils.errors import UserError
from utils.filesystem import open_regular_file
from utils.logs.logger import log

_DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


class OnnxTeacher:
    """Network with one image input (B, 3, 112, 112), RGB in [-1, 1], and one output (B, embedding_size).

    If the file fixes B, images are run in padded batches of that size.
    """

    def __init__(self, embedding_size: int, world: World) -> None:
        """embedding_size: expected dimension of the output. `load` opens the file."""
        self.embedding_size = embedding_size
        self.world = world
        self.session: Any = None

    def load(self, path: Path) -> None:
        """Opens the file and tries it. Raises UserError if it is no such network or ONNX Runtime is not installed."""
        try:
            open_regular_file(path).close()
        except FileNotFoundError:
            raise UserError(f"{path}: no such teacher", fix="set teacher_pth") from None
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}", fix="set teacher_pth") from None
        self.session = _open_session(path, self.world)
        inputs = self.session.get_inputs()
        if len(inputs) != 1 or not _matches(inputs[0].shape, [None, 3, SIZE, SIZE]) or inputs[0].type not in _DTYPES:
            found = ", ".join(f"{i.name} {i.shape} {i.type}" for i in inputs)
            raise UserError(
                f"{path}: a teacher's one input is (B, 3, {SIZE}, {SIZE}), it has {found}",
                fix="export it with this input",
            )
        try:
            embeddings = self._run(np.zeros((2, 3, SIZE, SIZE), np.float32))  # the declared output shape may be open
        except _onnx_errors() as error:
            raise UserError(
                f"{path}: fails on two images ({_one_line(error)})", fix="export it for any number"
            ) from None
        if embeddings.shape != (2, self.embedding_size):
            raise UserError(
                f"{path}: embeddings of two images are {embeddings.shape} in the file and (2, {self.embedding_size}) "
                "in the config",
                fix="check embedding_size",
            )
        if not np.isfinite(embeddings).all():
            raise UserError(f"{path}: its embedding of a grey image is not finite", fix="name another teacher")

    def __call__(self, images: Tensor) -> Tensor:
        """Maps (B, 3, 112, 112) float32 in [-1, 1] to embeddings (B, embedding_size) float32 of length 1."""
        embeddings = torch.from_numpy(self._run(images.cpu().numpy()))
        return F.normalize(embeddings.to(images.device), dim=1)

    def _run(self, pixels: np.ndarray) -> np.ndarray:
        """Maps (B, 3, 112, 112) to the network's output (B, …) as float32, not normalised."""
        network_input = self.session.get_inputs()[0]
        n = len(pixels)
        pixels = np.ascontiguousarray(pixels.astype(_DTYPES[network_input.type]))
        shape = network_input.shape
        fixed_batch = shape[0] if shape and isinstance(shape[0], int) else 0
        if fixed_batch:
            pixels = np.concatenate([pixels, np.zeros((-n % fixed_batch, *pixels.shape[1:]), pixels.dtype)])
        batch = fixed_batch or n
        starts = range(0, len(pixels), batch)
        parts = [self.session.run(None, {network_input.name: pixels[start : start + batch]})[0] for start in starts]
        return (np.concatenate(parts)[:n] if fixed_batch else parts[0]).astype(np.float32)


def _open_session(path: Path, world: World) -> Any:
    """Opens an inference session, on the GPU if possible. Raises UserError without ONNX Runtime or a readable file."""
    try:
        import onnxruntime
    except ImportError:
        raise UserError(f"{path}: an ONNX teacher needs ONNX Runtime: pip install onnxruntime") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # fatal errors only: the others are raised, and would be printed twice
    cuda = "CUDAExecutionProvider"
    providers: list[Any] = ["CPUExecutionProvider"]
    if world.device.type == "cuda" and cuda in onnxruntime.get_available_providers():
        providers.insert(0, (cuda, {"device_id": world.device.index}))
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=providers)
    except _onnx_errors() as error:
        raise UserError(f"{path}: not a readable ONNX network ({_one_line(error)})", fix="export it again") from None
    if world.device.type == "cuda" and cuda not in session.get_providers():
        log.warning(f"{path}: runs on the CPU because this ONNX Runtime has no CUDA: pip install onnxruntime-gpu")
    return session


def _onnx_errors() -> tuple[type[Exception], ...]:
    """Returns the exception classes of ONNX Runtime, which have no common base class."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    return tuple(kind for kind in vars(state).values() if isinstance(kind, type) and issubclass(kind, Exception))


def _one_line(error: Exception) -> str:
    """Returns the error's message on one line of at most 200 characters."""
    return " ".join(str(error).split())[:200]


def _matches(declared: list[Any], expected: list[int | None]) -> bool:
    """Returns whether a declared shape is compatible with the expected one.

    Dynamic dimensions are names or None in the declared shape; None in the expected shape allows any size.
    """
    if len(declared) != len(expected):
        return not declared  # the file declares no shape
    sizes = zip(declared, expected, strict=True)
    return all(want is None or not isinstance(have, int) or have == want for have, want in sizes)
