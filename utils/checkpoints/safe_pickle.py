"""Checks the content of a .pth file before torch.load reads it: its zip records, its checksums and its pickle.

torch.load(weights_only=True) runs no code, but it allocates whatever size a number in the file asks for, does not
verify checksums, and trusts the sizes that a tensor claims. Here the pickle is first read with descriptions in place of
tensors, and may only call the functions that rebuild a dense tensor of real numbers.
"""

import io
import math
import os
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple

_MAX_OPCODES = 1_000_000  # in a pickle; a tensor takes about thirty
_MAX_TUPLES = 50_000  # in a pickle; a tensor takes five. Hashing a tuple nested a million deep overflows the stack
_MAX_PICKLE_SIZE = 1 << 24  # bytes of a pickle
_MAX_DIMENSIONS = 64
_MAX_VIEW_RATIO = 4  # bytes of all tensors per stored byte; above one where tensors share storage
_ITEM_SIZES = {
    "FloatStorage": 4, "DoubleStorage": 8, "HalfStorage": 2, "BFloat16Storage": 2, "LongStorage": 8, "IntStorage": 4,
    "ShortStorage": 2, "CharStorage": 1, "ByteStorage": 1, "BoolStorage": 1,
}  # fmt: skip


class UnsupportedContent(pickle.UnpicklingError):
    """Content of a .pth file that this project does not load. The message says in one line what it is."""


def check_file(file: BinaryIO) -> None:
    """Checks a file that torch.save wrote, in the zip layout or the legacy one before it.

    Raises UnsupportedContent where a part is damaged or holds more than tensors and plain values, and the errors of
    zipfile and pickle where the file has neither layout.
    """
    is_zip = file.read(4) == b"PK\x03\x04"  # as torch.load decides
    file.seek(0)
    (_check_zip if is_zip else _check_legacy)(file)


def _check_zip(file: BinaryIO) -> None:
    """Checks the records and their CRC-32, then the pickle and the size of each storage that it refers to."""
    with zipfile.ZipFile(file) as zipped:
        entries = zipped.infolist()
        root = entries[0].filename.partition("/")[0]
        sizes = {entry.filename: entry.file_size for entry in entries}
        # header_offset: not 0 where zipfile reads another directory than torch does
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries) or entries[0].header_offset != 0:
            raise UnsupportedContent("holds a compressed record")
        if any(entry.external_attr & 0x10 for entry in entries):  # a folder: torch would leave its memory uninitialised
            raise UnsupportedContent("holds a folder for a record")
        if len({name.lower() for name in sizes}) < len(entries):  # torch.load ignores case in record names
            raise UnsupportedContent("holds two records of one name")
        if any(name.endswith("data.pkl") and name != f"{root}/data.pkl" for name in sizes):
            raise UnsupportedContent("holds two pickles")
        if sum(sizes.values()) > os.fstat(file.fileno()).st_size:
            raise UnsupportedContent("has records that are larger than the file")
        if damaged := zipped.testzip():
            raise UnsupportedContent(f"damaged, the checksum of its part {damaged!a:.60} is not right; copy it again")
        if sizes[f"{root}/data.pkl"] > _MAX_PICKLE_SIZE:
            raise UnsupportedContent("holds too large a pickle")
        dry_run = _dry_run(io.BytesIO(zipped.read(f"{root}/data.pkl")))
    for storage in dry_run.storages.values():
        if sizes.get(f"{root}/data/{storage.key}") != storage.n_bytes:
            raise UnsupportedContent(f"damaged, its record {storage.key!a:.60} is not {storage.n_bytes} bytes long")


def _check_legacy(file: BinaryIO) -> None:
    """Checks the five pickles in a row, and that the storages after them have the size that the fourth one says."""
    stream = io.BytesIO(file.read(_MAX_PICKLE_SIZE))
    _, _, _, dry_run, keys = (_dry_run(stream) for _ in range(5))
    if keys.content != sorted(dry_run.storages):
        raise UnsupportedContent("damaged, its storages are not those that its tensors use")
    needed = sum(storage.n_bytes + 8 for storage in dry_run.storages.values())  # 8: the length before each
    if needed > os.fstat(file.fileno()).st_size - stream.tell():
        raise UnsupportedContent("cut short, or has storages that are larger than the file")


def _dry_run(stream: io.BytesIO) -> "_DryRun":
    """Reads the pickle at the stream's position, and moves the stream to the end of that pickle."""
    start, n_tuples = stream.tell(), 0
    for number, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
        n_tuples += opcode.name.startswith("TUPLE")
        # The unpickler's memo table is as long as the largest index that is put into it.
        memo_index = argument if "PUT" in opcode.name and isinstance(argument, int) else 0
        if max(number, memo_index) > _MAX_OPCODES or n_tuples > _MAX_TUPLES:
            raise UnsupportedContent("holds too many values")
    end = stream.tell()
    stream.seek(start)
    run = _DryRun(stream)
    run.content = run.load()
    stream.seek(end)
    if run.view_bytes > _MAX_VIEW_RATIO * sum(storage.n_bytes for storage in run.storages.values()):
        raise UnsupportedContent("has tensors that together are larger than their stored data")
    return run


# Descriptions in place of torch's objects. Named tuples, because a pickle cannot change them.


class _StorageType(NamedTuple):
    item_size: int  # bytes


class _Storage(NamedTuple):
    key: str
    item_size: int  # bytes
    n_items: int

    @property
    def n_bytes(self) -> int:
        return self.item_size * self.n_items


class _Tensor(NamedTuple):
    storage: _Storage


class _Function(NamedTuple):
    function: Callable[..., object]

    def __call__(self, *arguments: Any) -> object:
        return self.function(*arguments)


class _DryRun(pickle.Unpickler):
    """Unpickles descriptions of tensors and plain values, and refuses everything else."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, encoding="utf-8")
        self.content: Any = None
        self.storages: dict[str, _Storage] = {}
        self.view_bytes = 0  # bytes of all tensors; several may view one storage

    def find_class(self, module: str, name: str) -> object:
        """Returns the stand-in for a global in the pickle. Raises UnsupportedContent where it is not allowed."""
        if module == "torch" and name in _ITEM_SIZES:
            return _StorageType(_ITEM_SIZES[name])
        functions: dict[str, Callable[..., object]] = {
            "torch._utils._rebuild_tensor": self._tensor,
            "torch._utils._rebuild_tensor_v2": self._tensor,
            "torch._utils._rebuild_parameter": self._parameter,
            "collections.OrderedDict": lambda: OrderedDict(),  # takes no arguments: it would copy them
        }
        full_name = f"{module}.{name}"
        if full_name in functions:
            return _Function(functions[full_name])
        shown = full_name if full_name.isascii() and full_name.isprintable() else ascii(full_name)
        if module.startswith("torch"):
            raise UnsupportedContent(f"should hold only dense real tensors and plain values; it has {shown:.80}")
        raise UnsupportedContent(
            f"not a readable checkpoint: it holds more than tensors ({shown:.80}); save only the network's state dict"
        )

    def persistent_load(self, saved: Any) -> _Storage:
        """Returns the description of a storage in the pickle. Raises UnsupportedContent where it is malformed."""
        match saved:
            case ("storage", _StorageType(item_size), str(key), str(), int(n_items)) if n_items >= 0:
                pass
            case ("storage", _StorageType(item_size), str(key), str(), int(n_items), None) if n_items >= 0:
                pass  # the legacy layout
            case _:
                raise UnsupportedContent("damaged, it refers to a storage in an unknown way")
        storage = _Storage(key, item_size, n_items)
        if self.storages.setdefault(key, storage) != storage:
            raise UnsupportedContent("damaged, it gives one storage two sizes")
        return storage

    def _tensor(
        self,
        storage: Any,
        offset: int,
        size: tuple[int, ...],
        stride: tuple[int, ...],
        requires_grad: bool = False,
        hooks: object = None,
        metadata: object = None,
    ) -> _Tensor:
        numbers = (offset, *size, *stride)
        if not isinstance(storage, _Storage) or not all(type(number) is int and number >= 0 for number in numbers):
            raise UnsupportedContent("damaged, it has a tensor of invalid size")
        if hooks or metadata or len(size) != len(stride) or len(size) > _MAX_DIMENSIONS:
            raise UnsupportedContent("should hold only dense real tensors and plain values; it has other tensors")
        n_items = math.prod(size)
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if n_items and max(n_items, last + 1) > storage.n_items:
            raise UnsupportedContent(f"has a tensor with more elements than the {storage.n_items:,} stored for it")
        self.view_bytes += n_items * storage.item_size
        return _Tensor(storage)

    def _parameter(self, tensor: Any, requires_grad: bool, hooks: object) -> _Tensor:
        if not isinstance(tensor, _Tensor) or hooks:
            raise UnsupportedContent("damaged, it has a parameter that is not a tensor")
        return tensor
