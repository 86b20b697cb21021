"""The networks against the published code: keys, shapes, outputs, gradients, parameters, FLOPs."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from backbones.build import build_backbone
from backbones.ops import build_operation
from config import load_config, shipped_configs
from tests.helpers.golden import golden_images, golden_state
from tests.helpers.paths import GOLDEN, ROOT
from utils.flops import count_operations

SHAPES = json.loads((GOLDEN / "state_dict_shapes.json").read_text())
VECTORS = np.load(GOLDEN / "models.npz")
# golden name -> (config, overrides)
NETWORKS = {
    "PocketNetS128": ("PocketNetS128", []),
    "PocketNetS256": ("PocketNetS256", []),
    "PocketNetM128": ("PocketNetM128", []),
    "PocketNetM256": ("PocketNetM256", []),
    "PocketNetS128_cifar10": ("PocketNetS128", ["genotype=softmax_cifar10"]),
    "iresnet18_128": ("iresnet100", ["net_name=iresnet18"]),
    "iresnet50_128": ("iresnet100", ["net_name=iresnet50"]),
    "iresnet100_256": ("iresnet100_256", []),
}


def build(name: str) -> nn.Module:
    config, overrides = NETWORKS[name]
    return build_backbone(load_config(ROOT / "config" / f"config_{config}.py", overrides))


def batch_norms(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


def filled(name: str) -> nn.Module:
    """The network with golden weights and the running statistics that the golden vectors were made with."""
    model = build(name)
    model.load_state_dict(golden_state(SHAPES[name]), strict=True)
    for module in batch_norms(model):
        module.momentum = 1.0
    with torch.no_grad():
        model.train()(golden_images(14, 8))
    for module in batch_norms(model):
        module.momentum = 0.1
    return model


def relative(ours: np.ndarray, golden: np.ndarray) -> float:
    return float(np.abs(ours - golden).max() / np.abs(golden).max())


@pytest.mark.parametrize("name", NETWORKS)
def test_keys_and_shapes_are_the_published_ones(name):
    assert [[key, list(value.shape)] for key, value in build(name).state_dict().items()] == [
        [key, shape] for key, shape in SHAPES[name].items()
    ]


@pytest.mark.parametrize("name", NETWORKS)
def test_golden_embeddings_and_gradients(name):
    model = filled(name)
    with torch.no_grad():
        embeddings = model.eval()(golden_images(11, 2)).numpy()
        in_channels_last = model.to(memory_format=torch.channels_last)(golden_images(11, 2)).numpy()
    assert relative(embeddings, VECTORS[f"{name}/eval"]) < 1e-4
    assert relative(in_channels_last, VECTORS[f"{name}/eval"]) < 1e-4
    if f"{name}/train" not in VECTORS:
        return
    model.to(memory_format=torch.contiguous_format)
    out = model.train()(golden_images(12, 4))
    assert relative(out.detach().numpy(), VECTORS[f"{name}/train"]) < 1e-4
    weights = np.random.default_rng(13).standard_normal(tuple(out.shape)).astype(np.float32)
    (out * torch.from_numpy(weights)).sum().backward()
    norms = np.array([p.grad.double().norm().item() for p in model.parameters()])
    golden = VECTORS[f"{name}/gradnorm"]
    # The smallest golden norms (1e-5 beside 1e2) are rounding noise of sums that cancel: 1e-6 of the largest is let go.
    np.testing.assert_allclose(norms, golden, rtol=1e-3, atol=1e-6 * golden.max())


@pytest.mark.parametrize(
    ("config", "parameters", "mflops", "millions_of_multiply_adds"),
    [
        ("PocketNetS128", 925_632, 587.11, 283.5),
        ("PocketNetS256", 991_424, 587.24, 283.6),
        ("PocketNetM128", 1_686_656, 1099.02, 538.2),
        ("PocketNetM256", 1_752_448, 1099.16, 538.3),
    ],
)
def test_parameters_and_flops(config, parameters, mflops, millions_of_multiply_adds):
    cost = count_operations(build_backbone(load_config(ROOT / "config" / f"config_{config}.py")))
    assert cost.parameters == parameters
    assert round(cost.published_flops / 1e6, 2) == mflops
    assert cost.multiply_adds / 1e6 == pytest.approx(millions_of_multiply_adds, abs=0.051)


def test_every_shipped_config_builds():
    for path in shipped_configs():
        config = load_config(path)
        assert build_backbone(config)(torch.zeros(2, 3, 112, 112)).shape == (2, config.embedding_size)


def test_an_embedding_of_512_widens_the_tail():
    config = load_config(ROOT / "config" / "config_PocketNetS128.py", ["embedding_size=512"])
    assert build_backbone(config).state_dict()["tail.1.weight"].shape == (1024, 512, 1, 1)


def test_average_pool_does_not_count_pads():
    pool = build_operation("avg_pool_3x3", 1, 1).eval()
    ones = torch.ones(1, 1, 4, 4)
    torch.testing.assert_close(pool.pool(ones), ones)
