"""The tables of utils/registry.py: every entry is what the table promises."""

import pytest
import torch
from torch import nn

from backbones.build import build_backbone
from backbones.names import resolve_network_name
from backbones.ops import build_operation
from config import load_config
from config.fields import DEFAULTS
from tests.helpers.paths import ROOT
from utils import registry
from utils.datasets.image_dataset import ImageDataset
from utils.losses.header import make_margin
from utils.registry import BACKBONES, DATA_SOURCES, LOSSES, OPERATIONS, OPTIMIZERS, load_entry


def small(*overrides: str):
    return load_config(ROOT / "config" / "config_demo.py", ["channel=4", "embedding_size=16", *overrides])


@pytest.mark.parametrize("name", BACKBONES)
def test_a_backbone_embeds_and_its_fields_are_those_of_a_config(name):
    backbone = BACKBONES[name]
    assert resolve_network_name(name) == name
    assert {*backbone.fields, *backbone.size} <= DEFAULTS.keys() and backbone.size.keys() <= {*backbone.fields}
    network = build_backbone(small(f"net_name={name}")).eval()
    assert network(torch.zeros(1, 3, 112, 112)).shape == (1, 16)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_keeps_channels_and_divides_resolution(name, stride):
    assert build_operation(name, 6, stride)(torch.randn(2, 6, 8, 8)).shape == (2, 6, 8 // stride, 8 // stride)


@pytest.mark.parametrize("name", LOSSES)
def test_a_margin_makes_the_own_class_harder(name):
    cosine = torch.linspace(-1, 1, 21)[:, None].requires_grad_()
    shifted = make_margin(small(f"loss={name}"))(cosine, torch.ones(21, 1))
    assert shifted.shape == (21, 1) and (shifted <= cosine).all()
    shifted.sum().backward()
    assert torch.isfinite(cosine.grad).all()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_lowers_a_loss(name):
    weights = nn.Parameter(torch.ones(8))
    optimizer = load_entry(OPTIMIZERS[name])([weights], small(f"optimizer={name}"))
    weights.square().sum().backward()
    optimizer.step()
    assert weights.square().sum() < 8
    assert all(isinstance(value, torch.Tensor) for value in optimizer.state[weights].values())


@pytest.mark.parametrize("name", DATA_SOURCES)
def test_a_data_source_is_an_image_dataset(name):
    source = load_entry(DATA_SOURCES[name])
    assert issubclass(source, ImageDataset) and source.read_into is not ImageDataset.read_into


def test_every_table_is_tested_here():
    tables = {name for name, value in vars(registry).items() if name.isupper() and isinstance(value, dict)}
    assert tables == {"BACKBONES", "OPERATIONS", "LOSSES", "OPTIMIZERS", "DATA_SOURCES"}
