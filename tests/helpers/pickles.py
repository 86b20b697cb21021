"""Checkpoints built byte by byte, and the memory of this process."""

import io
import re
import zipfile
from pathlib import Path


def memory_bytes(field: str) -> int:
    """Returns bytes of this process: VmHWM is its peak memory, VmSize its address space."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) << 10


def zip_checkpoint(pickled_weights: bytes, *records: bytes, inflated: int = 0) -> bytes:
    """Returns a checkpoint in torch's zip layout with this pickle and the bytes of these storages.

    inflated: megabytes of a last record, compressed to a thousandth of its size.
    """
    names = {"data.pkl": pickled_weights, "byteorder": b"little", "version": b"3\n"}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, content in (names | {f"data/{i}": record for i, record in enumerate(records)}).items():
            file.writestr(f"a/{name}", content)
        if inflated:
            last = zipfile.ZipInfo(f"a/data/{len(records)}")
            last.compress_type = zipfile.ZIP_DEFLATED
            with file.open(last, "w") as record:
                for _ in range(inflated):
                    record.write(bytes(10**6))
    return buffer.getvalue()


def read_data_pickle(checkpoint: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(checkpoint)) as file:
        return next(file.read(name) for name in file.namelist() if name.endswith("data.pkl"))
