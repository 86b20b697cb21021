"""Core ML and LiteRT, whose converters are large and optional."""

import json
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from backbones.build import build_backbone
from deploy import FaceEmbedder
from deploy.exporting.formats import FORMATS
from deploy.exporting.network import ExportNetwork
from eval.inference.embedding import TorchRuntime
from tests.helpers.networks import small_network_config
from tests.helpers.training import CPU

FACES = np.random.default_rng(0).integers(0, 256, (3, 112, 112, 3), np.uint8)


@pytest.mark.parametrize(
    ("name", "precision", "uint8"),
    [("litert", "fp32", False), ("litert", "fp32", True), ("coreml", "fp16", True), ("coreml", "fp32", False)],
)
def test_outputs_and_metadata(tmp_path, name, precision, uint8):
    kind = FORMATS[name]
    if missing := [package for package in kind.packages if not find_spec(package)]:
        pytest.skip(f"not installed: {', '.join(missing)} (requirements-deploy.txt)")
    torch.manual_seed(1)
    backbone = build_backbone(small_network_config()).eval()
    expected = TorchRuntime(backbone, CPU.device, 3)(FACES)[0]
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    conversion = kind.convert(ExportNetwork(backbone, kind.interface(32, uint8, True)), precision, None, False)
    path = tmp_path / f"net{kind.suffix}"
    conversion.save(path)
    conversion.save(path, json.dumps({"thresholds": {"größe": {}}}))  # written twice, as the command does
    network = kind.open(path, 1)
    assert network.metadata == {"thresholds": {"größe": {}}} and network.is_uint8 == uint8
    assert network.shape == ((112, 112, 3) if name == "litert" else (3, 112, 112)) and network.embedding_size == 32
    np.testing.assert_allclose(network(FACES), expected, rtol=0, atol=1e-5 if precision == "fp32" else 2e-3)
    if name == "litert":
        np.testing.assert_allclose(FaceEmbedder.load(path).embed(FACES), expected, rtol=0, atol=1e-5)
