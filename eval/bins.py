"""Verification sets: the `.bin` files of pairs of faces (lfw.bin, cfp_fp.bin, agedb_30.bin, ...).

A `.bin` is a pickle of `(images, issame)`: 2N encoded images, of which 2i and 2i + 1 are pair i, and N flags. People
download these files from strangers, and a pickle is a program, so nothing here runs one: `_DataUnpickler` knows only
the opcodes that build data, and no global of the file is ever imported. It accepts what Python 2 and Python 3 write at
every protocol, with images as bytes or as uint8 arrays and flags as bools, as numpy bools or as one array.
"""

import math
import mmap
import os
import pickle
import pickletools
import struct
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NoReturn

import cv2
import numpy as np
from numpy.typing import NDArray

from utils.errors import UserError
from utils.image_size import image_size

SIDE = 112  # pixels, of the square faces that the networks take
MOST_PIXELS = 1 << 25  # of an image: 100 MB once decoded
_MOST_OBLONG = 64  # times as long as wide: resized, an image one pixel wide would take gigabytes
_CHUNK = 64  # images a thread decodes at a time: enough to hide the cost of handing over

# The opcodes of data. INST and REDUCE call, but only what find_class gave out; BUILD and BYTEARRAY8 are ours, below.
# Absent are OBJ, NEWOBJ, EXT and PERSID, and all of dicts, sets and floats.
_OPCODES = """
    PROTO FRAME STOP MARK MEMOIZE PUT BINPUT LONG_BINPUT GET BINGET LONG_BINGET GLOBAL STACK_GLOBAL INST REDUCE
    NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 EMPTY_LIST LIST APPEND APPENDS
    EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8
    UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8
"""

# All integers, for images and flags. A bool is read as its byte, so that a byte that is neither 0 nor 1 shows.
_DTYPES = {"b1": "u1"} | {code: code for code in ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8")}

# What the unpickler raises on bytes that are no pickle, or half of one.
_CORRUPT = (
    pickle.UnpicklingError,
    ValueError,  # with UnicodeError
    EOFError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    OverflowError,
    MemoryError,
    struct.error,
)


class _RefusedError(Exception):
    """The pickle asks for something other than data; the message names it."""


def _shown(value: object) -> str:
    """A text of the pickle in a message. Not so an object: to hash or to print tuples in tuples can end the process."""
    return f"{value!a:.40}" if type(value) is str else f"of type {type(value).__name__}"


class _DType:
    """Stands for a numpy dtype while unpickling."""

    def __init__(self, code: str | bytes, *_: object) -> None:
        name = code.decode("latin1") if isinstance(code, bytes) else code
        if type(name) is not str or name not in _DTYPES:
            raise _RefusedError(f"a numpy array of dtype {_shown(name)}")
        self.dtype: np.dtype[Any] = np.dtype(_DTYPES[name])

    def build(self, state: tuple[Any, ...]) -> None:
        order: Any = state[1]
        order = order.decode("latin1") if isinstance(order, bytes) else order
        self.dtype = self.dtype.newbyteorder(order)


class _Array:
    """Stands for a numpy array while unpickling: its bytes, which are shared with the pickle's memo, not copied."""

    dtype = np.dtype("u1")
    data = b""

    def build(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, _, data = state
        self.fill(shape, dtype, data)

    def fill(self, shape: tuple[int, ...], dtype: _DType, data: bytes) -> None:
        if type(dtype) is not _DType or type(data) is not bytes or type(shape) is not tuple or len(shape) > 4:
            raise ValueError("not an array")
        # each by itself first: to multiply numbers of a million digits takes forever
        sound = all(type(n) is int and 0 <= n <= len(data) for n in shape)
        if not sound or math.prod(shape) * dtype.dtype.itemsize != len(data):
            raise ValueError("the array's shape and its bytes disagree")
        self.dtype, self.data = dtype.dtype, data

    def values(self) -> list[int]:
        return np.frombuffer(self.data, self.dtype).tolist()


def _reconstruct(*_: object) -> _Array:
    return _Array()  # BUILD fills it


def _frombuffer(data: bytes, dtype: _DType, shape: tuple[int, ...], _order: str) -> _Array:
    array = _Array()
    array.fill(shape, dtype, data)
    return array


def _scalar(dtype: _DType, data: bytes) -> int:
    return _frombuffer(data, dtype, (), "C").values()[0]


class _Opcodes(dict[int, Callable[[Any], None]]):
    """The table of opcodes, which refuses those it lacks."""

    def __missing__(self, code: int) -> NoReturn:
        names = [opcode.name for opcode in pickletools.opcodes if opcode.code == chr(code)]
        if not names:
            raise pickle.UnpicklingError(f"byte {code} is no opcode")
        raise _RefusedError(f"opcode {names[0]}")


class _DataUnpickler(pickle._Unpickler):
    """Python's own unpickler in Python, cut down to data.

    The one in C cannot be cut down: it keeps BUILD and EXT, and grows its memo to any index that a file of ten bytes
    names. This one is as fast here, where the work is a few long strings. It reads from `file` no more than is there.
    """

    def __init__(self, file: mmap.mmap) -> None:
        super().__init__(file, encoding="bytes")
        self._budget = len(file)

    def find_class(self, module: str, name: str) -> Any:
        """Return our stand-in for a global of the pickle. Nothing is imported."""
        home = module.replace("__builtin__", "builtins").replace("numpy._core", "numpy.core")  # as Python 3, numpy 1
        stand_ins: dict[tuple[str, str], Any] = {
            ("_codecs", "encode"): self._encode,
            ("builtins", "bytes"): self._bytes,
            ("builtins", "bytearray"): self._bytes,
            ("numpy", "ndarray"): None,  # only ever the first argument of _reconstruct
            ("numpy", "dtype"): _DType,
            ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
            ("numpy.core.multiarray", "scalar"): _scalar,
            ("numpy.core.numeric", "_frombuffer"): _frombuffer,
        }
        if (home, name) not in stand_ins:
            raise _RefusedError(f"{module + '.' + name!a:.80}")
        return stand_ins[home, name]

    def _encode(self, text: str, codec: str) -> bytes:
        """Bytes as Python 3 writes them at protocols 0 to 2.

        A file pays for every character once, so a total longer than the file means one string encoded again and again.
        """
        if type(text) is not str or codec not in ("latin1", "latin-1"):
            raise _RefusedError(f"the bytes of an object of type {type(text).__name__} in codec {_shown(codec)}")
        self._budget -= len(text)
        if self._budget < 0:
            raise _RefusedError("more bytes than the file holds")
        return text.encode("latin1")

    def _bytes(self, value: bytes | str = b"", codec: str = "") -> bytes:
        """The empty bytes of protocols 0 to 2, and bytearrays, which are read as bytes."""
        if type(value) is bytes and not codec:
            return value
        return self._encode(value, codec)  # type: ignore[arg-type]  # it checks

    def _build(self) -> None:
        state = self.stack.pop()  # type: ignore[attr-defined]
        target = self.stack[-1]  # type: ignore[attr-defined]
        if type(target) not in (_Array, _DType):
            raise _RefusedError(f"opcode BUILD on a {type(target).__name__}")
        target.build(state)

    def _bytearray8(self) -> None:
        (size,) = struct.unpack("<Q", self.read(8))  # type: ignore[attr-defined]
        self.append(self.read(size))  # type: ignore[attr-defined]

    dispatch = _Opcodes(
        {getattr(pickle, name)[0]: pickle._Unpickler.dispatch[getattr(pickle, name)[0]] for name in _OPCODES.split()}
        | {pickle.BUILD[0]: _build, pickle.BYTEARRAY8[0]: _bytearray8}
    )


def _unpickle(path: Path) -> object:
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _DataUnpickler(data).load()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except _RefusedError as error:
        raise UserError(
            f"{path}: refused: the pickle asks for {error}, a verification set needs no such thing"
        ) from error
    except _CORRUPT as error:
        reason = f"{error!s:.80}".splitlines() or [type(error).__name__]
        raise UserError(f"{path}: not a verification set, or cut short ({reason[0]})") from error


def _encoded_images(stored: object) -> list[bytes]:
    if not isinstance(stored, list | tuple):
        raise UserError("the images are not a list")
    images = [item.data if isinstance(item, _Array) else item for item in stored]
    for index, image in enumerate(images):
        if not isinstance(image, bytes):
            raise UserError(f"image {index} is of type {type(image).__name__}, not the bytes of an image file")
    return images


def _flags(stored: object) -> NDArray[np.bool_]:
    values = stored.values() if isinstance(stored, _Array) else stored
    if not isinstance(values, list | tuple) or not all(type(v) in (bool, int) and v in (0, 1) for v in values):
        raise UserError("the flags are not a list of true and false")
    return np.array(values, dtype=bool)


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
) -> NDArray[np.uint8]:
    """Decode the images of a part (default: all) into RGB pixels (n, 112, 112, 3), with one thread a core by default.

    An image of another size is resized, bicubic, so that its short side is 112 pixels, as the published code does
    (mx.image.resize_short); where that leaves it oblong, which stopped the published code, its centre is taken.

    `encoded` may read an image when it is asked for; the decoding threads ask. `open_with` gives its pixels for the
    time of a block, or None, or raises UserError with the reason. `resized` is given the indices of resized images.

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
    with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        for _ in pool.map(decode_chunk, range(0, len(wanted), _CHUNK)):
            pass
    return images


def load_bin(path: str | os.PathLike[str]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Load a verification set: RGB images (2N, 112, 112, 3) uint8, and flags (N,): see `read_bin` and `decode`.

    Raises UserError naming the file, and the image where it is one that cannot be decoded.
    """
    encoded, issame = read_bin(path)
    return decode(encoded, name=lambda index: f"{path}: image {index} of {len(encoded)}"), issame
