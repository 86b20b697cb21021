"""The content of a checkpoint reaches all ranks bit by bit, and only its outline as a pickle."""

import pickle

import pytest
import torch
import torch.distributed as dist

from tests.helpers.training import CPU, spawn_ranks
from utils.checkpoints.broadcast import read_on_main
from utils.errors import UserError

DTYPES = [
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int16,
    torch.uint8,
    torch.bool,
]


def content() -> dict:
    """A state with every kind of value that a checkpoint has; 4 MB of tensors."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (1 << 20, 4), dtype=torch.uint8, generator=generator)
    return {
        "backbone": {"any bits": noise.view(torch.float32), "channels_last": torch.randn(2, 3, 4, 5).mT},
        "ranks": [{str(dtype): torch.tensor([0, 1, 1]).to(dtype)} for dtype in DTYPES],
        "optimizer": {"header": {"step": torch.tensor(7.0), "empty": torch.empty(0, 3)}},
        "position": {"step": 3, "ends": [[1, 2, 1]]},
        "way": "ArcFaceTask",
        "scaler": {},
        "none": None,
    }


def test_two_ranks_have_the_same_content(tmp_path):
    torch.save(content(), tmp_path / "read.pth")
    spawn_ranks(_share, tmp_path)
    expected = torch.load(tmp_path / "read.pth")
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pth")
        assert _flat(found["content"]) == _flat(expected)
        assert found["pickled"] < 10_000


def _share(world, folder):
    pickled, broadcast = [], dist.broadcast_object_list

    def count(objects):
        pickled.append(len(pickle.dumps(objects)))
        broadcast(objects)

    dist.broadcast_object_list = count
    reads = []
    found = read_on_main(world, lambda: reads.append(1) or torch.load(folder / "read.pth"))
    assert len(reads) == (world.rank == 0) and len(pickled) == 1
    torch.save({"content": found, "pickled": pickled[0]}, folder / f"{world.rank}.pth")


def _flat(value) -> object:
    """Returns the value with tensors as plain values that are equal only for equal bits."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.flatten().view(torch.uint8).numpy().tobytes()
    if isinstance(value, dict):
        return {key: _flat(part) for key, part in value.items()}
    return [_flat(part) for part in value] if isinstance(value, list) else value


def test_nothing_and_errors_pass_through(tmp_path):
    read = content()
    assert read_on_main(CPU, lambda: read) is read and read_on_main(CPU, lambda: None) is None
    with pytest.raises(UserError, match="damaged"):
        read_on_main(CPU, _fail)
    spawn_ranks(_fail_on_main, tmp_path)


def _fail():
    raise UserError("damaged")


def _fail_on_main(world, folder):
    assert read_on_main(world, lambda: None) is None
    with pytest.raises((UserError, SystemExit)):
        read_on_main(world, _fail)
