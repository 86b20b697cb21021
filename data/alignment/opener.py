"""Opens photos as aligned faces, for the evaluation."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from numpy import uint8
from numpy.typing import NDArray

from data.alignment.aligner import align_photo
from data.alignment.detector import Detector
from data.alignment.detectors import open_detector
from utils.datasets.alignment import SIZE
from utils.datasets.photos import open_photo


class AligningOpener:
    """Opens encoded photos as aligned faces, in any number of threads."""

    def __init__(self, detector: Path | None = None) -> None:
        """detector: YuNet as ONNX file, or None for BlazeFace. Raises UserError if it cannot be opened."""
        self._path = detector
        self._local = threading.local()
        self._detector()  # a bad file is reported before any photo is read

    @contextmanager
    def __call__(self, encoded: bytes) -> Iterator[NDArray[uint8]]:
        """Context manager that yields the largest face near the middle, aligned: (112, 112, 3) RGB.

        Yields a photo of 112×112, which is aligned already, and one without a face as they are. Raises UserError with
        the reason if the bytes are not a photo.
        """
        with open_photo(encoded) as image:
            aligned = [] if image.shape[:2] == (SIZE, SIZE) else align_photo(image, self._detector())[0]
            yield aligned[0].image if aligned else image

    def _detector(self) -> Detector:
        """Returns the detector of this thread."""
        if not hasattr(self._local, "detector"):
            self._local.detector = open_detector(self._path)
        return self._local.detector
