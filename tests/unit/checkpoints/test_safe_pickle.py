"""What a .pth file may hold: nothing that turns a number into memory, no flipped bit, no tensors of other kinds.

The bombs are read in a process of its own, whose memory is limited. By hand:

    python -m tests.unit.checkpoints.test_safe_pickle FOLDER
"""

import io
import os
import random
import re
import resource
import struct
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.helpers.paths import ROOT, SHARED
from tests.helpers.pickles import memory_bytes, read_data_pickle, zip_checkpoint
from utils.checkpoints.weights import CheckpointError, load_safe, read_weights

LIMIT = 256 << 20  # bytes of addresses beside those of Python and torch
PUBLISHED = SHARED / "data" / "PocketNetS-128" / "295672backbone.pth"


def number(value: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", value)


def saved(content: object, zip_file: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=zip_file)
    return buffer.getvalue()


def replaced(content: bytes, old: bytes, new: bytes) -> bytes:
    assert old in content
    return content.replace(old, new)


def with_record(content: bytes, name: str) -> bytes:
    buffer = io.BytesIO(content)
    with zipfile.ZipFile(buffer, "a") as file:
        file.writestr(name, bytes(24))
    return buffer.getvalue()


def many_names(same: bool) -> bytes:
    """One record that the directory lists 20,000 times."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("a/data.pkl", b"\x80\x02}.")
        file.writestr("a/data/0", bytes(100_000))
        record = file.filelist[-1]
        for place in range(20_000):
            again = zipfile.ZipInfo(record.filename if same else f"a/data/{place + 1}")
            again.CRC, again.header_offset = record.CRC, record.header_offset
            again.file_size = again.compress_size = record.file_size
            file.filelist.append(again)
    return buffer.getvalue()


def bombs() -> Iterator[tuple[str, bytes]]:
    """Yields the expected message and the file."""
    huge, resume_point = number(10**10), b"\x80\x02"
    tensor = read_data_pickle(saved({"a": torch.zeros(2, 3)}))
    old = saved({"a": torch.zeros(2, 3)}, zip_file=False)
    shape, stored = b"K\x02K\x03\x86", b"K\x06t"
    copies = b"ccollections\nOrderedDict\nq\x00)Rq\x01" + b"(" + b"".join(
        b"J" + struct.pack("<i", key) + b"N" for key in range(1000)
    ) + b"u0](" + b"h\x00h\x01\x85R" * 40_000 + b"e."  # fmt: skip
    for called, arguments in (
        (b"builtins\nbytearray", number(4 << 30) + b"\x85"),
        (b"__builtin__\nbytearray", number(4 << 30) + b"\x85"),
        (b"_codecs\nencode", b"X\x01\x00\x00\x00aX\x05\x00\x00\x00utf-8\x86"),
        (b"builtins\nset", b"]\x85"),
        (b"collections\nCounter", b"}\x85"),
    ):
        call = resume_point + b"c" + called + b"\n" + arguments + b"R."
        name = called.decode().replace("\n", ".")
        yield rf"holds more than tensors \({re.escape(name)}\)", zip_checkpoint(call)
        yield rf"holds more than tensors \({re.escape(name)}\)", replaced(old, old[old.index(b"}q", 100) - 2 :], call)
    for called, arguments in (
        (b"torch\nSize", b"K\x01\x85\x85"),
        (b"torch._utils\n_rebuild_meta_tensor_no_storage", b"NN\x86"),
        (b"torch._utils\n_rebuild_wrapper_subclass", b")"),
        (b"torch.storage\nUntypedStorage", huge + b"\x85"),
        (b"torch\nQUInt8Storage", huge + b"\x85"),
    ):
        name = called.decode().replace("\n", ".")
        yield (
            rf"only dense real tensors and plain values; it has {re.escape(name)}",
            zip_checkpoint(resume_point + b"c" + called + b"\n" + arguments + b"R."),
        )
    yield "TypeError", zip_checkpoint(resume_point + b"ctorch\nFloatStorage\n" + huge + b"\x85R.")
    yield "TypeError", zip_checkpoint(resume_point + copies)  # an OrderedDict with arguments, which are not allowed
    yield "is not 40000000000 bytes long", zip_checkpoint(replaced(tensor, stored, huge + b"t"), b"")
    yield "larger than the file", replaced(old, stored[:2] + b"N", huge + b"N")
    yield "more elements than the 1 stored", saved({"a": torch.zeros(1).expand(10**9)})
    yield "more elements than the 1 stored", saved({"a": torch.zeros(1).expand(10**9)}, zip_file=False)
    yield "more elements than the 6 stored", zip_checkpoint(replaced(tensor, shape, huge + huge + b"\x86"), bytes(24))
    yield (
        "more elements than the 6 stored",
        zip_checkpoint(replaced(tensor, b"K\x03K\x01\x86", huge + b"K\x01\x86"), bytes(24)),
    )
    yield "a tensor of invalid size", zip_checkpoint(replaced(tensor, shape, number(-1) * 2 + b"\x86"), bytes(24))
    shared = torch.zeros(10**6)
    yield "together are larger", saved({str(key): shared[key:] for key in range(5000)})
    yield "two records of one name", many_names(same=True)
    yield "larger than the file", many_names(same=False)
    yield "a compressed record", zip_checkpoint(tensor, inflated=1000)
    yield "too many values", zip_checkpoint(resume_point + b"Nr\xff\xff\xff\x7f.")  # a table of 2^31 places
    yield "too many values", zip_checkpoint(resume_point + b"]" + b"]0" * 10**6 + b".")
    yield "too many values", zip_checkpoint(resume_point + b"})" + b"\x85" * 500_000 + b"K\x01s.")
    yield "too large a pickle", zip_checkpoint(resume_point + b"}0" * (9 << 20) + b"}.")
    yield "too many values", resume_point + b"]0" * 10**6 + b"."
    yield "two pickles", with_record(zip_checkpoint(tensor, bytes(24)), "a/b/data.pkl")
    yield "two records of one name", with_record(zip_checkpoint(tensor, bytes(24)), "A/DATA/0")


def main(folder: Path) -> None:
    """Reads every bomb with little memory. Raises AssertionError where one is not refused in the right words."""
    files = list(bombs())
    path = folder / "1backbone.pth"
    limit = memory_bytes("VmSize") + LIMIT
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for expected, content in files:
        path.write_bytes(content)
        try:
            load_safe(path)
        except CheckpointError as error:
            assert re.search(expected, str(error)) and str(error).isprintable() and len(str(error)) < 400, (
                f"{error}, not {expected}"
            )
        else:
            raise AssertionError(f"taken, not: {expected}")
    print(len(files), "refused")


def test_bombs_are_refused_with_little_memory(tmp_path):
    command = [sys.executable, "-W", "ignore", "-m", "tests.unit.checkpoints.test_safe_pickle", tmp_path]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0 and re.fullmatch(r"[3-9]\d refused\n", done.stdout), done.stderr[-3000:]


class Odd(torch.Tensor):
    """A tensor of a class of its own."""


PLAIN = {
    torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.bool, torch.uint8, torch.int8, torch.int16,
    torch.int32, torch.int64,
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("zip_file", [True, False])
def test_every_type_of_number_is_read_or_refused_in_one_line(tmp_path, zip_file):
    path, refused = tmp_path / "1header.pth", set()
    for dtype in {value for value in vars(torch).values() if isinstance(value, torch.dtype)}:
        try:
            content = saved({"a": (torch.zeros if dtype in PLAIN else torch.empty)(4, dtype=dtype)}, zip_file)
        except (RuntimeError, NotImplementedError, TypeError, KeyError):
            assert dtype not in PLAIN
            continue  # torch makes or saves no such tensor
        path.write_bytes(content)
        if dtype in PLAIN:
            value = read_weights(path)["a"]
            assert value.dtype is dtype and value.eq(0).all()
            continue
        with pytest.raises(CheckpointError, match="only dense real tensors") as error:
            read_weights(path)
        assert str(error.value).isprintable()
        refused.add(str(dtype))
    assert refused >= {"torch.complex64", "torch.bits8", "torch.float8_e5m2", "torch.float4_e2m1fn_x2", "torch.uint16"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.eye(4).to_sparse(),
        lambda: torch.eye(4).to_sparse_csr(),
        lambda: torch.eye(4).to_sparse_csc(),
        lambda: torch.eye(4).to_sparse_bsr((2, 2)),
        lambda: torch.eye(4).to_sparse_bsc((2, 2)),
        lambda: torch.eye(4).to("meta"),
        lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),
        lambda: torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.quint8),
        lambda: torch.quantize_per_channel(torch.ones(4, 2), torch.ones(4), torch.zeros(4), 0, torch.qint8),
        lambda: torch.ones(4).as_subclass(Odd),
        lambda: torch.ones(4, dtype=torch.complex64).conj(),
        lambda: torch.imag(torch.ones(4, dtype=torch.complex64).conj()),  # a real one that its flag negates
        lambda: torch.ones(4).untyped_storage(),
        lambda: torch.ones(4).numpy(),
    ],
)
def test_tensors_of_other_layouts_are_refused_in_one_line(tmp_path, make):
    torch.save({"a": make()}, tmp_path / "1header.pth")
    with pytest.raises(CheckpointError, match=r"1header\.pth: ") as error:
        read_weights(tmp_path / "1header.pth")
    assert str(error.value).isprintable() and len(str(error.value)) < 400


def test_a_file_that_was_saved_on_a_gpu_loads(tmp_path):
    weights = {"a": torch.arange(6.0).reshape(2, 3)}
    place = b"X\x03\x00\x00\x00cpu"
    on_gpu = replaced(read_data_pickle(saved(weights)), place, b"X\x06\x00\x00\x00cuda:1")
    for content in (
        zip_checkpoint(on_gpu, weights["a"].numpy().tobytes()),
        replaced(saved(weights, zip_file=False), place, b"X\x06\x00\x00\x00cuda:1"),
    ):
        (tmp_path / "1header.pth").write_bytes(content)
        assert torch.equal(read_weights(tmp_path / "1header.pth")["a"], weights["a"])


def test_slices_and_shared_weights_load(tmp_path):
    flat = torch.arange(24.0)
    weights = {"a": flat[:6].view(2, 3), "b": flat[6:].view(3, 6).T, "same": flat[:6].view(2, 3), "none": flat[:0]}
    for zip_file in (True, False):
        (tmp_path / "1header.pth").write_bytes(saved(weights, zip_file))
        read = read_weights(tmp_path / "1header.pth")
        assert all(torch.equal(value, read[key]) for key, value in weights.items())


def flipped(content: bytes, n: int, rng: random.Random) -> Iterator[bytes]:
    for _ in range(n):
        damaged = bytearray(content)
        damaged[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        yield bytes(damaged)


def count_noticed(path: Path, n: int) -> int:
    """How many of n single flipped bits are refused. Whatever is read is what was written."""
    content, noticed = path.read_bytes(), 0
    sound = read_weights(path)
    other = path.with_name("damaged.pth")
    for damaged in flipped(content, n, random.Random(3)):
        other.write_bytes(damaged)
        try:
            read = read_weights(other)
        except CheckpointError as error:
            assert "damaged.pth: " in str(error) and str(error).isprintable()
            noticed += 1
        else:  # of the padding between records
            assert read.keys() == sound.keys() and all(torch.equal(read[key], sound[key]) for key in sound)
    return noticed


def test_one_flipped_bit_is_noticed(tmp_path):
    torch.save(nn.Linear(64, 64).state_dict(), tmp_path / "1header.pth")
    assert count_noticed(tmp_path / "1header.pth", 100) > 80


@pytest.mark.skipif(not PUBLISHED.is_file(), reason="no published weights in ../shared/data")
def test_one_flipped_bit_in_published_weights_is_noticed(tmp_path):
    (tmp_path / "1backbone.pth").write_bytes(PUBLISHED.read_bytes())
    assert count_noticed(tmp_path / "1backbone.pth", 20) > 10


def test_a_wrong_checksum_is_named(tmp_path):
    torch.save({"kernel": torch.ones(1000)}, tmp_path / "1header.pth")
    content = bytearray((tmp_path / "1header.pth").read_bytes())
    content[content.index(torch.ones(1000).numpy().tobytes()) + 5] ^= 1
    (tmp_path / "1header.pth").write_bytes(content)
    with pytest.raises(
        CheckpointError, match=r"1header\.pth: damaged, the checksum of its part '.*data/0' is not right"
    ):
        read_weights(tmp_path / "1header.pth")


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "1header.pth")
    for path in (tmp_path / "1header.pth", Path(os.devnull), tmp_path):
        with pytest.raises(CheckpointError, match="is not a regular file"):
            read_weights(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
