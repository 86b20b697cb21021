"""An ONNX file as the teacher, run by ONNX Runtime (optional: pip install onnxruntime, or onnxruntime-gpu)."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from utils.distributed import World
from utils.errors import UserError
from utils.images import SIZE

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
        if not path.is_file():
            raise UserError(f"{path}: no such teacher; set teacher_pth")
        self.session = _open(path, self.world)
        inputs, outputs = self.session.get_inputs(), self.session.get_outputs()
        if len(inputs) != 1 or not _fits(inputs[0].shape, [None, 3, SIZE, SIZE]) or inputs[0].type not in _DTYPES:
            found = ", ".join(f"{i.name} {i.shape} {i.type}" for i in inputs)
            raise UserError(f"{path}: a teacher's one input is (B, 3, {SIZE}, {SIZE}), it has {found}")
        if not _fits(outputs[0].shape, [None, self.embedding_size]):
            raise UserError(
                f"{path}: its output {outputs[0].name} is {tuple(outputs[0].shape)} and should be (B, "
                f"{self.embedding_size}) by the config; check embedding_size"
            )
        self._check_run(path)

    def _check_run(self, path: Path) -> None:
        """A file may leave the output's shape open."""
        try:
            found = tuple(self(torch.zeros(1, 3, SIZE, SIZE)).shape)
        except _errors() as error:
            raise UserError(f"{path}: fails on an image ({_line(error)})") from None
        if found != (1, self.embedding_size):
            raise UserError(
                f"{path}: the embedding of an image is {found} and should be (1, {self.embedding_size}) by the "
                "config; check embedding_size"
            )

    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, 112, 112) float32 in [-1, 1] -> (B, embedding_size) float32 of length 1."""
        given = self.session.get_inputs()[0]
        pixels = np.ascontiguousarray(images.cpu().numpy().astype(_DTYPES[given.type]))
        fixed = given.shape[0] if isinstance(given.shape[0], int) else 0
        if fixed:
            pixels = np.concatenate([pixels, np.zeros((-len(pixels) % fixed, *pixels.shape[1:]), pixels.dtype)])
        step = fixed or max(1, len(pixels))
        parts = [self._run(given.name, pixels[start : start + step]) for start in range(0, len(pixels), step)]
        embeddings = np.concatenate(parts)[: len(images)].astype(np.float32)
        return F.normalize(torch.from_numpy(embeddings).to(images.device), dim=1)

    def _run(self, name: str, pixels: np.ndarray) -> np.ndarray:
        return self.session.run(None, {name: pixels})[0]


def _open(path: Path, world: World) -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise UserError(f"{path}: an ONNX teacher needs ONNX Runtime: pip install onnxruntime") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # its errors are raised; on the screen they would stand twice
    wanted = ["CUDAExecutionProvider"] if world.device.type == "cuda" else []
    providers = [name for name in [*wanted, "CPUExecutionProvider"] if name in onnxruntime.get_available_providers()]
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=providers)
    except _errors() as error:
        raise UserError(f"{path}: not a readable ONNX network ({_line(error)})") from None


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
