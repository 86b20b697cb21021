"""Verification sets: the `.bin` files of pairs of faces (lfw.bin, cfp_fp.bin, agedb_30.bin, ...).

A `.bin` is a pickle of `(images, issame)`: 2N encoded images, of which 2i and 2i + 1 are pair i, and N flags. It is
read as Python 2 and Python 3 write it at every protocol, by `eval.inputs.unpickler`, which builds nothing but data:
images as bytes or uint8 arrays, in a list or in an array of objects; flags as bools or numbers that are 0 or 1.
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

from eval.inputs.unpickler import CORRUPT, DataUnpickler, RefusedError, StoredArray
from utils.datasets.image_header import image_size
from utils.errors import UserError
from utils.filesystem import open_regular_file
from utils.logs.progress_bar import Progress

SIDE = 112  # pixels, of the square faces that the networks take
MOST_PIXELS = 1 << 25  # of an image: 100 MB once decoded
_MOST_OBLONG = 64  # times as long as wide: resized, an image one pixel wide would take gigabytes
_CHUNK = 16  # images a thread decodes at a time: hides the cost of handing over, and large photos take under a minute


def _unpickle(path: Path) -> object:
    try:
        with open_regular_file(path) as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return DataUnpickler(data).load()
    except UserError:  # a ValueError, as is what the unpickler raises
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


def _listed(stored: object) -> Sequence[Any] | None:
    """The elements of a list, a tuple or an array; None for anything else."""
    if isinstance(stored, StoredArray):
        return stored.values() if stored.dtype.kind == "O" or len(stored.shape) == 1 else None
    return stored if isinstance(stored, list | tuple) else None


def _encoded_images(stored: object) -> list[bytes]:
    items = _listed(stored)
    if items is None:
        raise UserError("the images are not a list of the bytes of image files")
    images = []
    for index, item in enumerate(items):
        if isinstance(item, StoredArray):
            if item.dtype.kind == "O" or item.dtype.itemsize != 1 or max(item.shape, default=0) != len(item.data):
                shape = "×".join(map(str, item.shape))
                raise UserError(
                    f"image {index} is an array of {item.dtype.name} {shape}, not the bytes of an image file; encode "
                    "it as JPEG or PNG"
                )
            item = item.data
        if not isinstance(item, bytes):
            raise UserError(f"image {index} is of type {type(item).__name__}, not the bytes of an image file")
        images.append(item)
    return images


def _flags(stored: object) -> NDArray[np.bool_]:
    values = _listed(stored)
    if values is None:
        raise UserError("the flags are not a list; they should be true or false, one a pair")
    for index, value in enumerate(values):
        if type(value) not in (bool, int, float) or value not in (0, 1):
            raise UserError(f"flag {index} is {_shown_flag(value)}; flags should be true or false")
    return np.array(values, dtype=bool)


def _shown_flag(value: object) -> str:
    if isinstance(value, float) or (isinstance(value, int) and abs(value) < 1 << 64):
        return repr(value)
    return f"of type {type(value).__name__}"  # a number of a million digits cannot be printed


def read_bin(path: str | os.PathLike[str]) -> tuple[list[bytes], NDArray[np.bool_]]:
    """Read a verification set without decoding its images.

    Returns the 2N encoded images and the flags (N,), true where images 2i and 2i + 1 show the same person.

    Raises UserError naming the file where it is missing, cut short, no verification set, empty, or asks for more than
    data (the message names what).
    """
    path = Path(path)
    data = _unpickle(path)
    try:
        if not isinstance(data, list | tuple) or len(data) != 2:
            raise UserError("not a verification set: it should hold a pair (images, flags)")
        encoded, issame = _encoded_images(data[0]), _flags(data[1])
        if len(encoded) != 2 * len(issame):
            raise UserError(f"{len(encoded)} images for {len(issame)} pairs, it should be two a pair")
        if not encoded:
            raise UserError("the set is empty")
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return encoded, issame


def open_image(encoded: bytes) -> NDArray[np.uint8] | None:
    """RGB pixels (H, W, 3), or None where the bytes are no whole JPEG, PNG, BMP or WebP image, or one of more than 2^25
    pixels."""
    width, height = image_size(encoded) or (0, 0)
    if not 0 < width * height <= MOST_PIXELS:
        return None
    try:
        return cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR_RGB)  # type: ignore[return-value]
    except cv2.error:
        return None


def _opened(encoded: bytes) -> AbstractContextManager[NDArray[np.uint8] | None]:
    return nullcontext(open_image(encoded))


def _to_face(image: Any) -> NDArray[np.uint8]:
    """The image as a face of (112, 112, 3). Raises UserError for an image much longer than wide, or wider than long."""
    if image.shape == (SIDE, SIDE, 3):
        return image
    height, width = image.shape[:2]
    short = min(height, width)
    if max(height, width) > _MOST_OBLONG * short:
        raise UserError(f"is no face: {width}×{height} pixels")
    width, height = SIDE * width // short, SIDE * height // short
    image = cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC)
    top, left = (height - SIDE) // 2, (width - SIDE) // 2
    return image[top : top + SIDE, left : left + SIDE]


def decode(
    encoded: Sequence[bytes],
    threads: int | None = None,
    part: slice = slice(None),
    name: Callable[[int], str] | None = None,
    resized: list[int] | None = None,
    open_with: Callable[[bytes], AbstractContextManager[NDArray[np.uint8] | None]] = _opened,
    progress: str = "",
) -> NDArray[np.uint8]:
    """Decode the images of a part (default: all) into RGB pixels (n, 112, 112, 3), with one thread a core by default.

    An image of another size is resized, bicubic, so that its short side is 112 pixels, as the published code does
    (mx.image.resize_short); where that leaves it oblong, which stopped the published code, its centre is taken.

    `encoded` may read an image when it is asked for; the decoding threads ask. `open_with` gives its pixels for the
    time of a block, or None, or raises UserError with the reason. `resized` is given the indices of resized images.
    `progress` names a bar on a terminal, or lines of the log.

    Raises UserError at the first image that cannot be decoded, by its `name` (default: "image 3 of 12"), and where
    there is no memory for all.
    """
    wanted = range(len(encoded))[part]

    def problem(index: int, what: object) -> UserError:
        return UserError(f"{name(index) if name else f'image {index} of {len(encoded)}'} {what}")

    def decode_chunk(start: int) -> None:
        for row, index in enumerate(wanted[start : start + _CHUNK], start):
            content = encoded[index]
            try:
                with open_with(content) as image:
                    if image is None:
                        raise UserError("cannot be decoded")
                    if resized is not None and image.shape != (SIDE, SIDE, 3):
                        resized.append(index)
                    images[row] = _to_face(image)
            except UserError as error:
                raise problem(index, error) from None

    try:
        images = np.empty((len(wanted), SIDE, SIDE, 3), np.uint8)
    except MemoryError:
        size = len(wanted) * SIDE * SIDE * 3 >> 20
        raise problem(wanted[0], f"and all behind it take {size} MiB decoded, more than there is") from None

    # OpenCV lets go of Python's lock while it decodes. map reports the first chunk that failed and drops the rest.
    starts = range(0, len(wanted), _CHUNK)
    with (
        ThreadPoolExecutor(threads or os.cpu_count()) as pool,
        Progress(len(wanted), progress, "images", bool(progress)) as shown,
    ):
        for start, _ in zip(starts, pool.map(decode_chunk, starts), strict=True):
            shown.update(min(_CHUNK, len(wanted) - start))
    return images


def load_bin(path: str | os.PathLike[str]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Load a verification set: RGB images (2N, 112, 112, 3) uint8, and flags (N,): see `read_bin` and `decode`.

    Raises UserError naming the file, and the image where it is one that cannot be decoded.
    """
    encoded, issame = read_bin(path)
    return decode(encoded, name=lambda index: f"{path}: image {index} of {len(encoded)}"), issame
