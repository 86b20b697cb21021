"""Restricted unpickler for verification sets. It builds only data and runs no code from the file.

These files are downloaded from third parties, and a pickle is a program. `DataUnpickler` therefore knows only the
opcodes that build data, and imports no global that the file names. Numpy arrays become stand-ins with their values.
"""

import math
import mmap
import pickle
import pickletools
import struct
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np

# Opcodes that build data. INST and REDUCE call, but only what find_class returns; BUILD and BYTEARRAY8 are implemented
# below. Left out: OBJ, NEWOBJ, EXT and PERSID, and the opcodes of dicts and sets.
_OPCODES = """
    PROTO FRAME STOP MARK MEMOIZE PUT BINPUT LONG_BINPUT GET BINGET LONG_BINGET GLOBAL STACK_GLOBAL INST REDUCE
    NONE NEWTRUE NEWFALSE FLOAT BINFLOAT INT BININT BININT1 BININT2 LONG LONG1 LONG4 EMPTY_LIST LIST APPEND APPENDS
    EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8
    UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8
"""

# Dtypes of images and flags. A bool is read as a byte, so that a byte other than 0 and 1 is noticed. An object array is
# a list of the objects in the file.
_NUMBERS = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8")
_DTYPES = {"b1": "u1", "O": "O", "O4": "O", "O8": "O"} | {code: code for code in _NUMBERS}

# Python objects that the other opcodes build, named for error messages.
_KINDS = {
    "a dict": "EMPTY_DICT DICT SETITEM SETITEMS",
    "a set": "EMPTY_SET ADDITEMS FROZENSET",
    "an object of a Python class": "OBJ NEWOBJ NEWOBJ_EX BUILD",
    "an object stored outside the file": "PERSID BINPERSID EXT1 EXT2 EXT4 NEXT_BUFFER READONLY_BUFFER",
}
_REFUSED_KINDS = {name: kind for kind, names in _KINDS.items() for name in names.split()}

# Exceptions that the unpickler raises on bytes that are not a pickle, or on a truncated one.
CORRUPT = (
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


class RefusedError(Exception):
    """Raised if the pickle asks for anything but data; the message names it."""


def _quote(value: object) -> str:
    """Returns a string of the pickle for a message, and only the type of any other object.

    Printing or hashing deeply nested tuples can crash the process.
    """
    return f"{value!a:.40}" if type(value) is str else f"of type {type(value).__name__}"


class _DType:
    """Stand-in for a numpy dtype during unpickling."""

    def __init__(self, code: str | bytes, *_: object) -> None:
        name = code.decode("latin1") if isinstance(code, bytes) else code
        if type(name) is not str or name not in _DTYPES:
            raise RefusedError(f"a numpy array of dtype {_quote(name)}")
        self.dtype: np.dtype[Any] = np.dtype(_DTYPES[name])

    def build(self, state: tuple[Any, ...]) -> None:
        order: Any = state[1]
        order = order.decode("latin1") if isinstance(order, bytes) else order
        self.dtype = self.dtype.newbyteorder(order)


class StoredArray:
    """Stand-in for a numpy array during unpickling: its bytes, or for an object array the list of its objects.

    The bytes are shared with the pickle's memo, not copied.
    """

    dtype = np.dtype("u1")
    shape: tuple[int, ...] = (0,)
    data: bytes | list[Any] = b""

    def build(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, _, data = state
        self.fill(shape, dtype, data)

    def fill(self, shape: tuple[int, ...], dtype: _DType, data: bytes | list[Any]) -> None:
        if type(dtype) is not _DType or type(data) not in (bytes, list) or type(shape) is not tuple or len(shape) > 4:
            raise ValueError("not an array")
        is_object, itemsize = dtype.dtype.kind == "O", 1 if type(data) is list else dtype.dtype.itemsize
        # Checked one by one before the product: multiplying integers of a million digits takes forever.
        is_valid = all(type(n) is int and 0 <= n <= len(data) for n in shape)
        if is_object != (type(data) is list) or not is_valid or math.prod(shape) * itemsize != len(data):
            raise ValueError("the array's shape and its bytes disagree")
        self.shape, self.dtype, self.data = shape, dtype.dtype, data

    def values(self) -> list[Any]:
        """Returns the elements as Python numbers, or as the objects themselves."""
        return self.data if isinstance(self.data, list) else np.frombuffer(self.data, self.dtype).ravel().tolist()


def _reconstruct(*_: object) -> StoredArray:
    return StoredArray()  # filled by BUILD


def _frombuffer(data: bytes, dtype: _DType, shape: tuple[int, ...], _order: str) -> StoredArray:
    array = StoredArray()
    array.fill(shape, dtype, data)
    return array


def _scalar(dtype: _DType, data: bytes) -> int | float:
    return _frombuffer(data, dtype, (), "C").values()[0]


class _Opcodes(dict[int, Callable[[Any], None]]):
    """Table of opcodes. Raises RefusedError for an opcode that it does not contain."""

    def __missing__(self, code: int) -> NoReturn:
        names = [opcode.name for opcode in pickletools.opcodes if opcode.code == chr(code)]
        if not names:
            raise pickle.UnpicklingError(f"byte {code} is not an opcode")
        raise RefusedError(_REFUSED_KINDS.get(names[0], "something of another kind"))


class DataUnpickler(pickle._Unpickler):
    """Python's unpickler written in Python, restricted to data.

    The C implementation cannot be restricted: it keeps BUILD and EXT, and grows its memo to any index that a file of
    ten bytes names. This one is as fast for these files, which consist of a few long strings. It reads no more from
    `file` than the file holds.
    """

    def __init__(self, file: mmap.mmap) -> None:
        super().__init__(file, encoding="bytes")
        self._budget = len(file)

    def find_class(self, module: str, name: str) -> Any:
        """Returns the stand-in for a global of the pickle. Imports nothing; raises RefusedError for other globals."""
        canonical = module.replace("__builtin__", "builtins").replace(
            "numpy._core", "numpy.core"
        )  # named as in Python 3 and numpy 1
        stand_ins: dict[tuple[str, str], Any] = {
            ("_codecs", "encode"): self._encode,
            ("builtins", "bytes"): self._bytes,
            ("builtins", "bytearray"): self._bytes,
            ("numpy", "ndarray"): None,  # only used as the first argument of _reconstruct
            ("numpy", "dtype"): _DType,
            ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
            ("numpy.core.multiarray", "scalar"): _scalar,
            ("numpy.core.numeric", "_frombuffer"): _frombuffer,
        }
        if (canonical, name) not in stand_ins:
            raise RefusedError(f"{module + '.' + name!a:.80}")
        return stand_ins[canonical, name]

    def _encode(self, text: str, codec: str) -> bytes:
        """Decodes bytes as Python 3 writes them at protocols 0 to 2.

        Each character takes at least one byte of the file. A total longer than the file therefore means that one string
        is encoded repeatedly, which is refused.
        """
        if type(text) is not str or codec not in ("latin1", "latin-1"):
            raise RefusedError(f"the bytes of an object of type {type(text).__name__} in codec {_quote(codec)}")
        self._budget -= len(text)
        if self._budget < 0:
            raise RefusedError("more bytes than the file holds")
        return text.encode("latin1")

    def _bytes(self, value: bytes | str = b"", codec: str = "") -> bytes:
        """Decodes the empty bytes of protocols 0 to 2, and bytearrays, which become bytes."""
        if type(value) is bytes and not codec:
            return value
        return self._encode(value, codec)  # type: ignore[arg-type]  # _encode checks the type

    def _build(self) -> None:
        state = self.stack.pop()  # type: ignore[attr-defined]
        target = self.stack[-1]  # type: ignore[attr-defined]
        if type(target) not in (StoredArray, _DType):
            raise RefusedError("the state of an object of a Python class")
        target.build(state)

    def _bytearray8(self) -> None:
        (size,) = struct.unpack("<Q", self.read(8))  # type: ignore[attr-defined]
        self.append(self.read(size))  # type: ignore[attr-defined]

    dispatch = _Opcodes(
        {getattr(pickle, name)[0]: pickle._Unpickler.dispatch[getattr(pickle, name)[0]] for name in _OPCODES.split()}
        | {pickle.BUILD[0]: _build, pickle.BYTEARRAY8[0]: _bytearray8}
    )
