"""Reads photos from cameras, phones and scanners. Each is decoded on its own, in bounded memory."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from utils.datasets.image_header import read_photo_size
from utils.errors import UserError, one_line
from utils.filesystem import open_regular_file

IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".pgm", ".ppm", ".pbm", ".pnm",
)  # fmt: skip
HEIC_SUFFIXES = (".heic", ".heif", ".hif", ".avif")
CONVERT_HEIC = "HEIC is not supported: convert the photos to JPEG (iPhone: Settings, Camera, Formats, Most Compatible)"
MAX_PIXELS = 1 << 25  # per image: 100 MB decoded; a JPEG above it is decoded at half its size
_MAX_JPEG_PIXELS = 1 << 27  # 134 megapixels
_MAX_OTHER_PIXELS = 1 << 26  # 67 megapixels: 200 MB decoded, since other formats are decoded at full size
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1", b"avif", b"avis")


class PhotoFiles(Sequence[bytes]):
    """Sequence of the contents of files, each read on access. Raises UserError if a file cannot be read."""

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
    """Limits the pixels that threads hold at the same time; others wait. A larger request gets the whole budget."""

    def __init__(self, pixels: int) -> None:
        self.pixels = pixels
        self._free = pixels
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, pixels: int) -> Iterator[None]:
        """Context manager that holds that many pixels of the budget, and waits until they are free."""
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


_budget = PixelBudget(_MAX_JPEG_PIXELS)  # shared by all threads of the process: 400 MB decoded


@contextmanager
def open_photo(encoded: bytes) -> Iterator[NDArray[np.uint8]]:
    """Context manager that yields a photo's RGB pixels (H, W, 3), rotated by its EXIF orientation.

    Decodes the first image of a GIF or TIFF. A JPEG may have 2^27 pixels, and is decoded at half its width and height
    above 2^25; other formats may have 2^26. Raises UserError with the reason if the bytes are not such a photo.
    """
    width, height = read_photo_size(encoded) or (0, 0)
    if not width * height:
        is_heic = encoded[4:8] == b"ftyp" and encoded[8:12] in _HEIC_BRANDS
        raise UserError(f"cannot be decoded: {CONVERT_HEIC}" if is_heic else "cannot be decoded")
    is_jpeg = encoded.startswith(b"\xff\xd8\xff")
    limit = _MAX_JPEG_PIXELS if is_jpeg else _MAX_OTHER_PIXELS
    if width * height > limit:
        raise UserError(
            f"is too large: {width}×{height} pixels, {limit / 1e6:.0f} megapixels at most", fix="make it smaller"
        )
    with _budget.hold(width * height):
        yield _decode(encoded, half=is_jpeg and width * height > MAX_PIXELS)


def _decode(encoded: bytes, half: bool) -> NDArray[np.uint8]:
    # OpenCV has no flag for half the size in RGB.
    flag = cv2.IMREAD_REDUCED_COLOR_2 if half else cv2.IMREAD_COLOR_RGB
    try:
        image = cv2.imdecode(np.frombuffer(encoded, np.uint8), flag)
    except cv2.error:
        image = None
    if image is None:
        raise UserError("cannot be decoded")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image) if half else image  # type: ignore[return-value]
