"""Photos as cameras, phones and scanners make them: read and decoded one by one, in bounded memory."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from eval.inputs.bins import MOST_PIXELS
from utils.datasets.image_header import photo_size
from utils.errors import UserError, one_line
from utils.filesystem import open_regular_file

IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".pgm", ".ppm", ".pbm", ".pnm",
)  # fmt: skip
HEIC_SUFFIXES = (".heic", ".heif", ".hif", ".avif")
CONVERT_HEIC = "HEIC is not read: convert the photos to JPEG (on an iPhone: Settings, Camera, Formats, Most Compatible)"
_MOST_JPEG_PIXELS = 1 << 27  # 134 megapixels; a JPEG is decoded at half its size above MOST_PIXELS
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1", b"avif", b"avis")


class PhotoFiles(Sequence[bytes]):
    """The contents of files, each read when it is asked for."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> bytes:  # type: ignore[override]  # no slices
        try:
            with open_regular_file(self.paths[index]) as file:
                return file.read()
        except OSError as error:
            raise UserError(f"{one_line(self.paths[index])}: {error.strerror}") from None


class PixelBudget:
    """Lets threads hold so many pixels together; who wants more waits. One that wants more than all holds all."""

    def __init__(self, pixels: int) -> None:
        self.pixels = pixels
        self._free = pixels
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, pixels: int) -> Iterator[None]:
        """Hold so many pixels for the time of the block."""
        wanted = min(pixels, self.pixels)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= wanted)
            self._free -= wanted
        try:
            yield
        finally:
            with self._changed:
                self._free += wanted
                self._changed.notify_all()


_budget = PixelBudget(_MOST_JPEG_PIXELS)  # of all threads of the process: 400 MB decoded


@contextmanager
def open_photo(encoded: bytes) -> Iterator[NDArray[np.uint8]]:
    """Decode a photo to RGB pixels (H, W, 3), upright as its EXIF orientation says; of a GIF or TIFF the first image.

    A JPEG of more than 2^25 pixels, and of 2^27 at most, is decoded at half its width and height. Raises UserError with
    the reason where the bytes are no such photo.
    """
    width, height = photo_size(encoded) or (0, 0)
    if not width * height:
        is_heic = encoded[4:8] == b"ftyp" and encoded[8:12] in _HEIC_BRANDS
        raise UserError(f"cannot be decoded: {CONVERT_HEIC}" if is_heic else "cannot be decoded")
    most = _MOST_JPEG_PIXELS if encoded.startswith(b"\xff\xd8\xff") else MOST_PIXELS
    if width * height > most:
        raise UserError(f"is too large: {width}×{height} pixels, {most / 1e6:.0f} megapixels at most; make it smaller")
    with _budget.hold(width * height):
        yield _decode(encoded, half=width * height > MOST_PIXELS)


def _decode(encoded: bytes, half: bool) -> NDArray[np.uint8]:
    # There is no flag for half the size in RGB.
    flag = cv2.IMREAD_REDUCED_COLOR_2 if half else cv2.IMREAD_COLOR_RGB
    try:
        image = cv2.imdecode(np.frombuffer(encoded, np.uint8), flag)
    except cv2.error:
        image = None
    if image is None:
        raise UserError("cannot be decoded")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image) if half else image  # type: ignore[return-value]
