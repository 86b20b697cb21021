"""An ONNX file as the teacher, run by ONNX Runtime (optional: pip install onnxruntime, or onnxruntime-gpu)."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from utils.datasets.transforms import SIZE
from utils.distributed.process_group import World
from utils.errors import UserError
from utils.filesystem import open_regular_file
from utils.logs.run_log import log

_DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


class OnnxTeacher:
    """A network of one image input (B, 3, 112, 112), RGB in [-1, 1], and one output (B, embedding_size).

    Where its B is a fixed number, images go through it that many at a time.
    """

    def __init__(self, embedding_size: int, world: World) -> None:
        self.embedding_size = embedding_size
        self.world = world
        self.session: Any = None

    def load(self, path: Path) -> None:
        """Opens the file. Raises UserError where it is no such network, or ONNX Runtime is not installed."""
        try:
            open_regular_file(path).close()
        except FileNotFoundError:
            raise UserError(f"{path}: no such teacher; set teacher_pth") from None
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}; set teacher_pth") from None
        self.session = _open(path, self.world)
        inputs = self.session.get_inputs()
        if len(inputs) != 1 or not _fits(inputs[0].shape, [None, 3, SIZE, SIZE]) or inputs[0].type not in _DTYPES:
            found = ", ".join(f"{i.name} {i.shape} {i.type}" for i in inputs)
            raise UserError(f"{path}: a teacher's one input is (B, 3, {SIZE}, {SIZE}), it has {found}; export it so")
        try:
            tried = self._run(np.zeros((2, 3, SIZE, SIZE), np.float32))  # what it declares of its output may be open
        except _errors() as error:
            raise UserError(f"{path}: fails on two images ({_line(error)}); export it for any number") from None
        if tried.shape != (2, self.embedding_size):
            raise UserError(
                f"{path}: the embeddings of two images are {tried.shape} there and (2, {self.embedding_size}) by the "
                "config; check embedding_size"
            )
        if not np.isfinite(tried).all():
            raise UserError(f"{path}: its embedding of a grey image is not finite; name another teacher")

    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, 112, 112) float32 in [-1, 1] -> (B, embedding_size) float32 of length 1."""
        embeddings = torch.from_numpy(self._run(images.cpu().numpy()))
        return F.normalize(embeddings.to(images.device), dim=1)

    def _run(self, pixels: np.ndarray) -> np.ndarray:
        """(B, 3, 112, 112) -> (B, …) float32."""
        given = self.session.get_inputs()[0]
        n = len(pixels)
        pixels = np.ascontiguousarray(pixels.astype(_DTYPES[given.type]))
        fixed = given.shape[0] if given.shape and isinstance(given.shape[0], int) else 0
        if fixed:
            pixels = np.concatenate([pixels, np.zeros((-n % fixed, *pixels.shape[1:]), pixels.dtype)])
        step = fixed or n
        parts = [self.session.run(None, {given.name: pixels[i : i + step]})[0] for i in range(0, len(pixels), step)]
        return (np.concatenate(parts)[:n] if fixed else parts[0]).astype(np.float32)


def _open(path: Path, world: World) -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise UserError(f"{path}: an ONNX teacher needs ONNX Runtime: pip install onnxruntime") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # its errors are raised; on the screen they would stand twice
    cuda = "CUDAExecutionProvider"
    providers: list[Any] = ["CPUExecutionProvider"]
    if world.device.type == "cuda" and cuda in onnxruntime.get_available_providers():
        providers.insert(0, (cuda, {"device_id": world.device.index}))
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=providers)
    except _errors() as error:
        raise UserError(f"{path}: not a readable ONNX network ({_line(error)}); export it again") from None
    if world.device.type == "cuda" and cuda not in session.get_providers():
        log.warning(f"{path}: runs on the CPU, as ONNX Runtime here has no CUDA: pip install onnxruntime-gpu")
    return session


def _errors() -> tuple[type[Exception], ...]:
    """ONNX Runtime's own errors, which have no common class."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    return tuple(kind for kind in vars(state).values() if isinstance(kind, type) and issubclass(kind, Exception))


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _fits(shape: list[Any], wanted: list[int | None]) -> bool:
    """Whether a declared shape, its open sizes named or None, can be the wanted one."""
    if len(shape) != len(wanted):
        return not shape  # none declared
    pairs = zip(shape, wanted, strict=True)
    return all(want is None or not isinstance(have, int) or have == want for have, want in pairs)
