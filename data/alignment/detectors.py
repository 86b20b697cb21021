"""The detectors that --detector chooses from."""

from pathlib import Path

from data.alignment.blazeface import BlazeFace
from data.alignment.detector import Detector
from data.alignment.yunet import YuNet


def open_detector(path: Path | None = None) -> Detector:
    """Opens YuNet from an ONNX file, or without one the default, BlazeFace. Raises UserError."""
    return YuNet(path) if path else BlazeFace()
