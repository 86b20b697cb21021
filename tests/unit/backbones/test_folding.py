"""fold: the folded copy of a network computes the same embeddings with fewer layers."""

import copy
import sys
from collections import OrderedDict

import pytest
import torch
from torch import nn

from backbones import ops
from backbones.build import build_backbone
from backbones.folding import fold, fold_in_training
from backbones.iresnet import IResNet
from config import load_config
from tests.helpers.commands import run_command
from tests.helpers.paths import ROOT


def train_statistics(network, shape):
    """Gives every layer values of its own, batch norms too: those of a new network change nothing."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d) and module.track_running_stats:
            module.running_mean.uniform_(-0.5, 0.5, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
            if module.affine:
                module.weight.data.uniform_(-1.5, 1.5, generator=generator)
                module.bias.data.uniform_(-0.5, 0.5, generator=generator)
    return network.eval(), torch.randn(shape, generator=generator)


def count(network, kind):
    return sum(isinstance(module, kind) for module in network.modules())


@pytest.mark.parametrize(
    "name", ["PocketNetS128", "PocketNetM256", "iresnet100"]
)  # others differ in the last layer alone
def test_shipped_networks(name):
    config = load_config(ROOT / "config" / f"config_{name}.py")
    network = build_backbone(config)
    if isinstance(network, IResNet):  # untrained, its values would overflow
        for convolution in (module for module in network.modules() if isinstance(module, nn.Conv2d)):
            nn.init.normal_(convolution.weight, std=0.01)
    network, images = train_statistics(network, (2, 3, 112, 112))
    state = {name: value.clone() for name, value in network.state_dict().items()}
    folded = fold(network)
    with torch.inference_mode():
        expected, found = network(images), folded(images)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    assert state.keys() == network.state_dict().keys()
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in state.items())
    if "PocketNet" in name:
        kept = {name for name, module in folded.named_modules() if isinstance(module, nn.BatchNorm2d)}
        pools = {name for name, module in folded.named_modules() if isinstance(module, ops.PoolBN)}
        assert kept == {f"{name}.bn" for name in pools}  # a batch norm after max pooling has no convolution before it


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("kernel", [1, 3])
def test_depthwise_separable_convolutions(kernel, affine, stride):
    network, x = train_statistics(ops.StdConv(6, 10, kernel, stride, affine), (3, 6, 8, 8))
    folded = fold(network)
    torch.testing.assert_close(folded(x), network(x), rtol=1e-5, atol=1e-5)
    assert count(folded, nn.BatchNorm2d) == 0 and count(folded, nn.Conv2d) == (1 if kernel == 1 else 2)


@pytest.mark.parametrize("affine", [True, False])
def test_factorized_reduce(affine):
    network, x = train_statistics(ops.FactorizedReduce(6, 10, affine), (3, 6, 8, 8))
    folded = fold(nn.ModuleList([network]))[0]
    torch.testing.assert_close(folded(x), network(x), rtol=1e-5, atol=1e-5)
    assert count(folded, nn.BatchNorm2d) == 0 and count(folded, nn.Conv2d) == 2


def test_layers_that_must_stay():
    """Padding after a scaling, a stride of the second convolution, a batch norm without a convolution."""
    scaling = nn.Conv2d(4, 4, 1, groups=4)
    for layers in (
        [scaling, nn.Conv2d(4, 4, 3, padding=1)],
        [scaling, nn.Conv2d(4, 8, 1, 2)],
        [nn.BatchNorm2d(4), nn.Conv2d(4, 8, 1)],
        [nn.Conv2d(4, 4, 1), nn.Conv2d(4, 8, 1)],
        [nn.Conv2d(4, 4, 1), nn.PReLU(4), nn.BatchNorm2d(4)],
        [nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(4)],
        [nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)],
    ):
        network, x = train_statistics(nn.Sequential(*layers), (2, 4, 8, 8))
        folded = fold(network)
        assert [type(layer) for layer in folded] == [type(layer) for layer in layers]
        torch.testing.assert_close(folded(x), network(x))


def test_layers_keep_their_places():
    """A network may use layers of a Sequential by index or by name."""
    layers = {"conv": nn.Conv2d(4, 4, 3), "norm": nn.BatchNorm2d(4), "scaling": nn.Conv2d(4, 4, 1, groups=4)}
    layers |= {"pointwise": nn.Conv2d(4, 6, 1), "last": nn.BatchNorm2d(6), "slope": nn.PReLU(6)}
    network, x = train_statistics(nn.Sequential(OrderedDict(layers)), (2, 4, 8, 8))
    folded = fold(network)
    assert [name for name, _ in folded.named_children()] == [*layers]
    kinds = ["Conv2d", "Identity", "Conv2d", "Identity", "Identity", "PReLU"]
    assert [type(layer).__name__ for layer in folded] == kinds
    torch.testing.assert_close(folded(x), network(x), rtol=1e-5, atol=1e-5)


def test_a_subclass_of_sequential_is_left_alone():
    class Doubled(nn.Sequential):
        def forward(self, x):
            return self[1](2 * self[0](x))

    network, x = train_statistics(Doubled(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)), (2, 4, 8, 8))
    torch.testing.assert_close(fold(network)(x), network(x))


def test_negligible_weights_become_zero():
    network = nn.Sequential(nn.Conv2d(2, 2, 1), nn.PReLU(2))
    network[0].weight.data = torch.tensor([[1e-3, 1e-38], [-1e-14, -1e-16]]).view(2, 2, 1, 1)
    folded = fold(network)
    torch.testing.assert_close(folded[0].weight.flatten(), torch.tensor([1e-3, 0, -1e-14, 0]), rtol=0, atol=0)
    assert network[0].weight[0, 1] != 0


@pytest.mark.parametrize("c_in", [8, 16])
def test_folding_in_training_has_the_same_gradients(c_in):
    """Also with 8 channels to 4 at stride 2, whose gradient wrote beyond its memory."""
    for build in (lambda: ops.FactorizedReduce(c_in, 8), lambda: ops.StdConv(c_in, 4, 1, stride=2)):
        plain = build().double().to(memory_format=torch.channels_last)
        folded = copy.deepcopy(plain)
        fold_in_training(folded)
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(8, c_in, 56, 56, dtype=torch.float64, generator=generator)
        results = []
        for module in (plain, folded):
            images = x.to(memory_format=torch.channels_last).requires_grad_()
            module(images).square().sum().backward()
            results.append([images.grad, *(parameter.grad for parameter in module.parameters())])
        assert any(getattr(module, "folds", False) for module in folded.modules())
        torch.testing.assert_close(results[1], results[0])


def test_folding_in_training_of_few_channels_keeps_within_memory():
    """In float32, which oneDNN computes. A process of its own, whose memory is checked when it is freed."""
    code = (
        "import torch; from backbones.folding import fold_in_training; from backbones.ops import FactorizedReduce\n"
        "module = FactorizedReduce(8, 8).to(memory_format=torch.channels_last); fold_in_training(module)\n"
        "for _ in range(20):\n"
        "    images = torch.randn(8, 8, 56, 56).to(memory_format=torch.channels_last)\n"
        "    module(images).sum().backward()\n"
    )
    done = run_command(ROOT, sys.executable, "-c", code, MALLOC_CHECK_="3", OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
