"""The formats of exported files, and what each needs."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from deploy.exporting.converters.mil import open_mlpackage
from deploy.exporting.network import ExportNetwork, Interface
from deploy.networks.exported import ExportedNetwork, open_exported
from utils.errors import UserError

PRECISIONS = ("fp32", "fp16", "int8")


class Conversion(Protocol):
    """A network in a format, in memory."""

    def save(self, path: Path, metadata: str = "") -> None:
        """Writes the file, with metadata inside. Raises OSError."""


# (network, precision, faces to calibrate int8 with or None, whether accuracy control picks layers) -> conversion
Converter = Callable[[ExportNetwork, str, NDArray[np.uint8] | None, bool], Conversion]


@dataclass(frozen=True)
class Format:
    """A format of exported files.

    Attributes:
        packages: that the conversion needs, by the names they are imported by; int8 also needs NNCF.
        convert: imports the format's module and converts.
        open: opens a file for a number of threads.
        channels_last: whether inputs of floats are (B, 112, 112, 3), the layout of the format's runtime.
        runs_here: whether `open` runs the file in the runtime that it is for, so that its speed says something.
    """

    suffix: str
    precisions: tuple[str, ...]
    packages: tuple[str, ...]
    convert: Converter
    open: Callable[[Path, int], ExportedNetwork] = open_exported
    channels_last: bool = False
    runs_here: bool = True

    def require(self, name: str, precision: str) -> None:
        """Raises UserError if the format has no such precision, or a package is missing."""
        if precision not in self.precisions:
            raise UserError(f"--precision {precision}: not for --to {name}", fix=f"take {' or '.join(self.precisions)}")
        packages = (*self.packages, *(["nncf", "openvino"] if precision == "int8" else []))
        if missing := [package for package in packages if not find_spec(package)]:
            raise UserError(
                f"--to {name} --precision {precision}: needs {', '.join(missing)}",
                fix="pip install -r requirements-deploy.txt",
            )

    def interface(self, embedding_size: int, uint8: bool, unit: bool) -> Interface:
        """Returns the form of inputs and outputs of a network in this format."""
        return Interface(uint8, self.channels_last, unit, embedding_size)


def _to_onnx(*arguments: Any) -> Conversion:
    from deploy.exporting.converters.onnx import OnnxConversion

    return OnnxConversion(*arguments)


def _to_openvino(*arguments: Any) -> Conversion:
    from deploy.exporting.converters.openvino import OpenVinoConversion

    return OpenVinoConversion(*arguments)


def _to_litert(*arguments: Any) -> Conversion:
    from deploy.exporting.converters.litert import LiteRtConversion

    return LiteRtConversion(*arguments)


def _to_coreml(*arguments: Any) -> Conversion:
    from deploy.exporting.converters.coreml import CoreMlConversion

    return CoreMlConversion(*arguments)


FORMATS = {
    "onnx": Format(".onnx", PRECISIONS, ("onnx", "onnxruntime"), _to_onnx),
    "openvino": Format(".xml", PRECISIONS, ("onnx", "onnxruntime", "openvino"), _to_openvino),
    "litert": Format(".tflite", ("fp32",), ("litert_torch", "ai_edge_litert"), _to_litert, channels_last=True),
    "coreml": Format(".mlpackage", ("fp32", "fp16"), ("coremltools",), _to_coreml, open_mlpackage, runs_here=False),
}
