"""Record files for tests."""

import numpy as np

from utils.datasets.recordio.record_format import IndexedRecordWriter

MAGIC = bytes.fromhex("0a23d7ce")


def write_records(folder, records, name="a"):
    """Writes `records`, a dict by key or a list, and returns the paths of rec and idx."""
    rec, idx = folder / f"{name}.rec", folder / f"{name}.idx"
    with IndexedRecordWriter(rec, idx) as writer:
        for key, record in records.items() if isinstance(records, dict) else enumerate(records):
            writer.write(key, record)
    return rec, idx


def overwrite(path, offset, data):
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def random_payloads(seed, count):
    """Yields payloads of every length modulo four with complete and truncated magic words at random positions."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        pieces = rng.integers(0, 12, rng.integers(0, 20))
        yield b"".join(MAGIC if n > 9 else MAGIC[: n - 5] if n > 6 else rng.bytes(int(n)) for n in pieces)
