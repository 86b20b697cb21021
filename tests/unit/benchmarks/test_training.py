"""The parts of benchmarks/train.py: the work of a step, and where its time goes."""

import pytest
import torch
from torch import nn

from backbones.build import build_backbone
from benchmarks.training.floors import Ceilings, Work, count_work, floor_seconds
from benchmarks.training.kernels import profile_steps
from benchmarks.training.plain import make_plain
from config import load_config
from tests.helpers.paths import ROOT
from utils.flops import count_operations


@pytest.mark.parametrize("name", ["PocketNetS128", "PocketNetM256", "iresnet100"])
def test_multiply_adds_are_three_times_those_of_the_forward_pass(name):
    """Without the gradient of the first convolution's input, which is the image."""
    network = build_backbone(load_config(ROOT / "config" / f"config_{name}.py"))
    work = count_work(network)
    first = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    side = 112 // first.stride[0]
    expected = 3 * count_operations(network).multiply_adds - side**2 * first.weight.numel()
    assert sum(operation.multiply_adds for operation in work) == expected


def test_bytes_are_those_that_an_operation_reads_and_writes():
    network = nn.Sequential(nn.Conv2d(3, 2, 1, bias=False), nn.ReLU())
    image, maps = 4 * 3 * 112**2, 4 * 2 * 112**2
    moved = [operation.bytes for operation in count_work(network)]
    # convolution; ReLU; sum; gradients: of the ReLU from that of the sum, which is one number, and of the weight
    assert moved[:3] == [image + maps, 2 * maps, maps]
    assert sum(moved[3:]) == pytest.approx(3 * maps + image + maps, rel=1e-3)


def test_an_operation_takes_as_long_as_the_larger_of_arithmetic_and_traffic():
    ceilings = Ceilings(multiply_adds=100.0, bytes=10.0)
    assert floor_seconds([Work(200, 5), Work(1, 40)], ceilings) == 2 + 4


def test_shares_of_kinds_of_operations():
    layers = (
        nn.Conv2d(3, 8, 1),
        nn.Conv2d(8, 8, 5, padding=2, groups=8),
        nn.BatchNorm2d(8),
        nn.PReLU(8),
        nn.MaxPool2d(3),
    )
    network = nn.Sequential(*layers)
    with profile_steps(torch.device("cpu"), 2) as profiling:
        for _ in range(3):
            network(torch.randn(2, 3, 16, 16)).sum().backward()
            profiling.after_step()
    shares = profiling.result
    kinds = ("pointwise convolution", "depthwise convolution 5×5", "batch norm", "PReLU", "pooling")
    assert {f"{kind}, {way}" for kind in kinds for way in ("forward", "backward")} <= shares.keys()
    assert sum(shares.values()) == pytest.approx(1) and list(shares.values()) == sorted(shares.values(), reverse=True)


def test_the_plain_loop_has_torchs_operations():
    network = build_backbone(load_config(ROOT / "config" / "config_demo.py", ["channel=4", "n_layers=4"]))
    network = network.to(memory_format=torch.channels_last)
    make_plain(network)
    kinds = {type(module) for module in network.modules() if isinstance(module, nn.PReLU)}
    assert kinds == {nn.PReLU}
    assert all(parameter.is_contiguous() for parameter in network.parameters())
