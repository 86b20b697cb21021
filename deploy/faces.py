"""Finds and aligns the one face of a photo."""

import threading
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.alignment.aligner import align_photo
from data.alignment.detector import Detector
from data.alignment.detectors import open_detector
from utils.datasets.alignment import SIZE
from utils.datasets.photos import PhotoFiles, open_photo
from utils.errors import UserError, one_line

# A path, the content of a file, or RGB pixels (H, W, 3) uint8.
Photo = str | Path | bytes | NDArray[np.uint8]

# A face counts as a second one if its box has at least this part of the area of the chosen face's box: people in the
# background are smaller.
SECOND_FACE_AREA = 0.25


class FaceAligner:
    """Aligns the face of a photo, in any number of threads."""

    def __init__(self, detector: Path | None = None, largest: bool = False) -> None:
        """detector: YuNet as ONNX file, or None for BlazeFace; it is opened when it is needed.

        largest: whether to take the largest face near the middle where there are several, instead of raising an error.
        """
        self.largest = largest
        self._path = detector
        self._local = threading.local()  # each thread has a detector of its own

    def __call__(self, photo: Photo) -> NDArray[np.uint8]:
        """Returns the aligned face (112, 112, 3) RGB. A photo of 112×112 pixels is one already.

        Raises UserError that names the photo if it cannot be read, or has no face or several of similar size.
        """
        name = one_line(photo) if isinstance(photo, str | Path) else "the photo"
        try:
            if isinstance(photo, np.ndarray):
                return self._align(_check_pixels(photo))
            with open_photo(photo if isinstance(photo, bytes) else PhotoFiles([Path(photo)])[0]) as image:
                return self._align(image)
        except UserError as error:
            raise UserError(f"{name}: {error.problem.removeprefix(f'{name}: ')}", error.fix) from None

    def _align(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if image.shape[:2] == (SIZE, SIZE):
            return image.copy()
        aligned, found = align_photo(image, self._detector())
        if not aligned:
            raise UserError("no face was found", fix="take a photo that shows the face from the front, and larger")
        area = np.prod(aligned[0].face.box[2:])
        count = sum(face is aligned[0].face or np.prod(face.box[2:]) >= SECOND_FACE_AREA * area for face in found)
        if count > 1 and not self.largest:
            raise UserError(
                f"{count} faces were found", fix="cut out one, or take the largest near the middle with --largest"
            )
        return aligned[0].image

    def _detector(self) -> Detector:
        if not hasattr(self._local, "detector"):
            self._local.detector = open_detector(self._path)
        return self._local.detector


def _check_pixels(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise UserError(f"an array of shape {image.shape}, {image.dtype}: expected RGB pixels (H, W, 3), uint8")
    return image
