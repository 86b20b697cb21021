"""Reads verification sets: `.bin` files of pairs of faces (lfw.bin, cfp_fp.bin, agedb_30.bin, ...).

A `.bin` is a pickle of `(images, issame)`: 2N encoded images, of which 2i and 2i + 1 are pair i, and N flags. Files of
Python 2 and Python 3 and all pickle protocols are read, with `unpickler`, which builds only data: images as bytes or
uint8 arrays, in a list or an object array; flags as bools or numbers that are 0 or 1.
"""

import mmap
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from utils.datasets.alignment import SIZE
from utils.datasets.image_header import read_image_size
from utils.datasets.photos import MAX_PIXELS
from utils.datasets.verification.unpickler import CORRUPT, DataUnpickler, RefusedError, StoredArray
from utils.errors import UserError, quantity
from utils.filesystem import open_regular_file
from utils.logs.progress_bar import ProgressReporter

_MAX_ASPECT_RATIO = 64  # an image one pixel wide would take gigabytes when resized
_CHUNK = 16  # images per task of a thread: hides the cost of a task, and a chunk of large photos takes under a minute


def _unpickle(path: Path) -> object:
    try:
        with open_regular_file(path) as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return DataUnpickler(data).load()
    except UserError:  # UserError is a ValueError, which CORRUPT contains
        raise
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except RefusedError as error:
        raise UserError(
            f"{path}: refused: it holds {error}; a verification set is a pickled pair of a list of images, each the "
            "bytes of a JPEG or PNG file, and a list of flags, true or false"
        ) from error
    except CORRUPT as error:
        reason = f"{error!s:.80}".splitlines() or [type(error).__name__]
        raise UserError(f"{path}: not a verification set, or cut short ({reason[0]})") from error


def _as_sequence(stored: object) -> Sequence[Any] | None:
    """Returns the elements of a list, tuple or array, or None for anything else."""
    if isinstance(stored, StoredArray):
        return stored.values() if stored.dtype.kind == "O" or len(stored.shape) == 1 else None
    return stored if isinstance(stored, list | tuple) else None


def _parse_images(stored: object) -> list[bytes]:
    items = _as_sequence(stored)
    if items is None:
        raise UserError("the images are not a list of the bytes of image files")
    images = []
    for index, item in enumerate(items):
        if isinstance(item, StoredArray):
            if item.dtype.kind == "O" or item.dtype.itemsize != 1 or max(item.shape, default=0) != len(item.data):
                shape = "×".join(map(str, item.shape))
                raise UserError(
                    f"image {index} is an array of {item.dtype.name} {shape}, not the bytes of an image file",
                    fix="encode it as JPEG or PNG",
                )
            item = item.data
        if not isinstance(item, bytes):
            raise UserError(f"image {index} is of type {type(item).__name__}, not the bytes of an image file")
        images.append(item)
    return images


def _parse_flags(stored: object) -> NDArray[np.bool_]:
    values = _as_sequence(stored)
    if values is None:
        raise UserError("the flags are not a list", fix="they should be true or false, one per pair")
    for index, value in enumerate(values):
        if type(value) not in (bool, int, float) or value not in (0, 1):
            raise UserError(f"flag {index} is {_describe_flag(value)}", fix="flags should be true or false")
    return np.array(values, dtype=bool)


def _describe_flag(value: object) -> str:
    if isinstance(value, float) or (isinstance(value, int) and abs(value) < 1 << 64):
        return repr(value)
    return f"of type {type(value).__name__}"  # an integer of a million digits cannot be printed


def read_bin(path: str | os.PathLike[str]) -> tuple[list[bytes], NDArray[np.bool_]]:
    """Reads a verification set without decoding its images.

    Returns the 2N encoded images and the flags (N,), true if images 2i and 2i + 1 show the same person.

    Raises UserError that names the file if it is missing, truncated, not a verification set or empty, or if its pickle
    asks for anything but data (the message names it).
    """
    path = Path(path)
    data = _unpickle(path)
    try:
        if not isinstance(data, list | tuple) or len(data) != 2:
            raise UserError("not a verification set: it should hold a pair (images, flags)")
        encoded, issame = _parse_images(data[0]), _parse_flags(data[1])
        if len(encoded) != 2 * len(issame):
            raise UserError(f"{quantity(len(encoded), 'image')} for {quantity(len(issame), 'pair')}, not two each")
        if not encoded:
            raise UserError("the set is empty")
    except UserError as error:
        raise UserError(f"{path}: {error.problem}", error.fix) from error
    return encoded, issame


def open_image(encoded: bytes) -> NDArray[np.uint8] | None:
    """Decodes an image to RGB pixels (H, W, 3).

    None if the bytes are not a complete JPEG, PNG, BMP or WebP image, or if it has more than 2^25 pixels.
    """
    width, height = read_image_size(encoded) or (0, 0)
    if not 0 < width * height <= MAX_PIXELS:
        return None
    try:
        return cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR_RGB)  # type: ignore[return-value]
    except cv2.error:
        return None


def _open_image(encoded: bytes) -> AbstractContextManager[NDArray[np.uint8] | None]:
    return nullcontext(open_image(encoded))


def _to_face(image: Any) -> NDArray[np.uint8]:
    """Resizes and crops an image to (112, 112, 3). Raises UserError if one side is more than 64 times the other."""
    if image.shape == (SIZE, SIZE, 3):
        return image
    height, width = image.shape[:2]
    short = min(height, width)
    if max(height, width) > _MAX_ASPECT_RATIO * short:
        raise UserError(f"is not a face: {width}×{height} pixels")
    width, height = SIZE * width // short, SIZE * height // short
    image = cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC)
    top, left = (height - SIZE) // 2, (width - SIZE) // 2
    return image[top : top + SIZE, left : left + SIZE]


def decode_images(
    encoded: Sequence[bytes],
    threads: int | None = None,
    part: slice = slice(None),
    name: Callable[[int], str] | None = None,
    resized: list[int] | None = None,
    open_with: Callable[[bytes], AbstractContextManager[NDArray[np.uint8] | None]] = _open_image,
    progress: str = "",
) -> NDArray[np.uint8]:
    """Decodes images to RGB pixels (n, 112, 112, 3).

    Resizes an image of another size so that its short side is 112 pixels, with bicubic interpolation, as the published
    code does (mx.image.resize_short). Crops the centre of an image that is not square, where the published code failed.

    encoded: may read an image on access, which happens in the decoding threads.
    threads: number of threads; default: one per core.
    part: the images to decode; default: all.
    name: returns the name of an image in errors; default: "image 3 of 12".
    resized: receives the indices of resized images.
    open_with: returns a context manager that yields the pixels, or None if they cannot be decoded; may raise UserError
        with the reason.
    progress: label of the progress bar or of the log lines; empty: no progress.

    Raises UserError at the first image that cannot be decoded, and if the decoded images exceed the memory.
    """
    indices = range(len(encoded))[part]

    def image_error(index: int, reason: object) -> UserError:
        return UserError(f"{name(index) if name else f'image {index} of {len(encoded)}'} {reason}")

    def decode_chunk(start: int) -> None:
        for row, index in enumerate(indices[start : start + _CHUNK], start):
            content = encoded[index]
            try:
                with open_with(content) as image:
                    if image is None:
                        raise UserError("cannot be decoded")
                    if resized is not None and image.shape != (SIZE, SIZE, 3):
                        resized.append(index)
                    images[row] = _to_face(image)
            except UserError as error:
                raise image_error(index, error) from None

    try:
        images = np.empty((len(indices), SIZE, SIZE, 3), np.uint8)
    except MemoryError:
        size = len(indices) * SIZE * SIZE * 3 >> 20
        raise image_error(indices[0], f"and those after it need {size} MiB decoded: not enough memory") from None

    # OpenCV releases the GIL while it decodes. map raises the first chunk's error and cancels the rest.
    starts = range(0, len(indices), _CHUNK)
    with (
        ThreadPoolExecutor(threads or os.cpu_count()) as pool,
        ProgressReporter(len(indices), progress, "images", bool(progress)) as progress_bar,
    ):
        for start, _ in zip(starts, pool.map(decode_chunk, starts), strict=True):
            progress_bar.update(min(_CHUNK, len(indices) - start))
    return images


def load_bin(path: str | os.PathLike[str]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Loads a verification set: RGB images (2N, 112, 112, 3) uint8 and flags (N,), see `read_bin` and `decode_images`.

    Raises UserError that names the file, and the image if one cannot be decoded.
    """
    encoded, issame = read_bin(path)
    return decode_images(encoded, name=lambda index: f"{path}: image {index} of {len(encoded)}"), issame
