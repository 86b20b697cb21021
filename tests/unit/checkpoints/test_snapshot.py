"""Copies of a run's state: bit by bit the same, whether tensors are copied one by one or together."""

import io

import pytest
import torch

from backbones.build import build_backbone
from config.base import Config
from utils.checkpoints import snapshot
from utils.checkpoints.snapshot import copy_together, cpu_snapshot

GENERATOR = torch.Generator().manual_seed(0)


def bits(tensor: torch.Tensor) -> list[int]:
    return tensor.contiguous().flatten().view(torch.uint8).tolist()


@pytest.fixture
def together(monkeypatch):
    """Copies tensors on the CPU as small ones of a GPU are, and counts the transfers."""
    transfers = []
    cat = torch.cat
    monkeypatch.setattr(snapshot, "_is_small_on_gpu", lambda tensor: tensor.nbytes < 1000)
    monkeypatch.setattr(torch, "cat", lambda tensors: transfers.append(len(tensors)) or cat(tensors))
    return transfers


def state() -> dict:
    """A state with every kind of tensor that a run has, channels_last and special values among them."""
    weights = torch.randn(4, 3, 3, 3, generator=GENERATOR).to(memory_format=torch.channels_last)
    weights[0, 0] = torch.tensor([[torch.nan, -0.0, torch.inf], [1e-42, 0, 1], [2, 3, 4]])
    return {
        "weights": {"kernel": torch.randn(100, 50, generator=GENERATOR).T, "stem": torch.nn.Parameter(weights)},
        "ranks": [
            {"random": torch.get_rng_state()[:500], "steps": torch.tensor(7), "flag": torch.tensor([True, False])}
        ],
        "half": (torch.randn(5, generator=GENERATOR).half(), torch.empty(0)),
        "step": 3,
        "name": None,
    }


def test_tensors_copied_together_are_those_copied_one_by_one(together):
    content = state()
    ours = cpu_snapshot(content)
    assert sorted(together) == [1, 1, 1, 1, 2]  # by dtype: bool, float16, int64, uint8; two of float32
    pairs = [
        (ours["weights"]["kernel"], content["weights"]["kernel"]),
        (ours["weights"]["stem"], content["weights"]["stem"].detach()),
        *((ours["ranks"][0][name], value) for name, value in content["ranks"][0].items()),
        *zip(ours["half"], content["half"], strict=True),
    ]
    for copy, original in pairs:
        assert copy.dtype == original.dtype and copy.shape == original.shape and bits(copy) == bits(original)
        assert copy.is_contiguous() and not copy.requires_grad and type(copy) is torch.Tensor
        assert copy.untyped_storage().nbytes() == copy.nbytes
        assert not copy.numel() or copy.data_ptr() != original.data_ptr()
    assert (ours["step"], ours["name"], type(ours["half"])) == (3, None, list)


def test_a_network_is_copied_in_one_transfer_a_dtype_and_its_file_is_the_same(together):
    weights = build_backbone(Config(channel=4, n_layers=4)).state_dict()
    files = [io.BytesIO(), io.BytesIO()]
    torch.save(dict(zip(weights, copy_together([*weights.values()]), strict=True)), files[0])
    assert len(together) == 2  # of float32 and of int64
    torch.save({name: value.clone() for name, value in weights.items()}, files[1])
    assert files[0].getvalue() == files[1].getvalue()
