"""The unpickler of verification sets: it builds data and nothing else, and runs nothing of the file.

People download these files from strangers, and a pickle is a program, so `DataUnpickler` knows only the opcodes that
build data, and no global of the file is ever imported. Arrays of numpy become stand-ins that hold their values.
"""

import math
import mmap
import pickle
import pickletools
import struct
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np

# The opcodes of data. INST and REDUCE call, but only what find_class gave out; BUILD and BYTEARRAY8 are ours, below.
# Absent are OBJ, NEWOBJ, EXT and PERSID, and all of dicts and sets.
_OPCODES = """
    PROTO FRAME STOP MARK MEMOIZE PUT BINPUT LONG_BINPUT GET BINGET LONG_BINGET GLOBAL STACK_GLOBAL INST REDUCE
    NONE NEWTRUE NEWFALSE FLOAT BINFLOAT INT BININT BININT1 BININT2 LONG LONG1 LONG4 EMPTY_LIST LIST APPEND APPENDS
    EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8
    UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8
"""

# Of images and flags. A bool is read as its byte, so that a byte that is neither 0 nor 1 shows. An array of objects is
# a list of what stands in the file.
_NUMBERS = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8")
_DTYPES = {"b1": "u1", "O": "O", "O4": "O", "O8": "O"} | {code: code for code in _NUMBERS}

# What the other opcodes are for, in words of whoever wrote the file.
_KINDS = {
    "a dict": "EMPTY_DICT DICT SETITEM SETITEMS",
    "a set": "EMPTY_SET ADDITEMS FROZENSET",
    "an object of a Python class": "OBJ NEWOBJ NEWOBJ_EX BUILD",
    "an object that is kept elsewhere": "PERSID BINPERSID EXT1 EXT2 EXT4 NEXT_BUFFER READONLY_BUFFER",
}
_MEANT = {name: kind for kind, names in _KINDS.items() for name in names.split()}

# What the unpickler raises on bytes that are no pickle, or half of one.
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
    """The pickle asks for something other than data; the message names it."""


def _shown(value: object) -> str:
    """A text of the pickle in a message. Not so an object: to hash or to print tuples in tuples can end the process."""
    return f"{value!a:.40}" if type(value) is str else f"of type {type(value).__name__}"


class _DType:
    """Stands for a numpy dtype while unpickling."""

    def __init__(self, code: str | bytes, *_: object) -> None:
        name = code.decode("latin1") if isinstance(code, bytes) else code
        if type(name) is not str or name not in _DTYPES:
            raise RefusedError(f"a numpy array of dtype {_shown(name)}")
        self.dtype: np.dtype[Any] = np.dtype(_DTYPES[name])

    def build(self, state: tuple[Any, ...]) -> None:
        order: Any = state[1]
        order = order.decode("latin1") if isinstance(order, bytes) else order
        self.dtype = self.dtype.newbyteorder(order)


class StoredArray:
    """Stands for a numpy array while unpickling: its bytes, which are shared with the pickle's memo, not copied; of an
    array of objects, their list."""

    dtype = np.dtype("u1")
    shape: tuple[int, ...] = (0,)
    data: bytes | list[Any] = b""

    def build(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, _, data = state
        self.fill(shape, dtype, data)

    def fill(self, shape: tuple[int, ...], dtype: _DType, data: bytes | list[Any]) -> None:
        if type(dtype) is not _DType or type(data) not in (bytes, list) or type(shape) is not tuple or len(shape) > 4:
            raise ValueError("not an array")
        objects, size = dtype.dtype.kind == "O", 1 if type(data) is list else dtype.dtype.itemsize
        # each by itself first: to multiply numbers of a million digits takes forever
        sound = all(type(n) is int and 0 <= n <= len(data) for n in shape)
        if objects != (type(data) is list) or not sound or math.prod(shape) * size != len(data):
            raise ValueError("the array's shape and its bytes disagree")
        self.shape, self.dtype, self.data = shape, dtype.dtype, data

    def values(self) -> list[Any]:
        """The elements, as Python numbers or as the objects that they are."""
        return self.data if isinstance(self.data, list) else np.frombuffer(self.data, self.dtype).ravel().tolist()


def _reconstruct(*_: object) -> StoredArray:
    return StoredArray()  # BUILD fills it


def _frombuffer(data: bytes, dtype: _DType, shape: tuple[int, ...], _order: str) -> StoredArray:
    array = StoredArray()
    array.fill(shape, dtype, data)
    return array


def _scalar(dtype: _DType, data: bytes) -> int | float:
    return _frombuffer(data, dtype, (), "C").values()[0]


class _Opcodes(dict[int, Callable[[Any], None]]):
    """The table of opcodes, which refuses those it lacks."""

    def __missing__(self, code: int) -> NoReturn:
        names = [opcode.name for opcode in pickletools.opcodes if opcode.code == chr(code)]
        if not names:
            raise pickle.UnpicklingError(f"byte {code} begins nothing that a pickle holds")
        raise RefusedError(_MEANT.get(names[0], "something of another kind"))


class DataUnpickler(pickle._Unpickler):
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
            raise RefusedError(f"{module + '.' + name!a:.80}")
        return stand_ins[home, name]

    def _encode(self, text: str, codec: str) -> bytes:
        """Bytes as Python 3 writes them at protocols 0 to 2.

        A file pays for every character once, so a total longer than the file means one string encoded again and again.
        """
        if type(text) is not str or codec not in ("latin1", "latin-1"):
            raise RefusedError(f"the bytes of an object of type {type(text).__name__} in codec {_shown(codec)}")
        self._budget -= len(text)
        if self._budget < 0:
            raise RefusedError("more bytes than the file holds")
        return text.encode("latin1")

    def _bytes(self, value: bytes | str = b"", codec: str = "") -> bytes:
        """The empty bytes of protocols 0 to 2, and bytearrays, which are read as bytes."""
        if type(value) is bytes and not codec:
            return value
        return self._encode(value, codec)  # type: ignore[arg-type]  # it checks

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
