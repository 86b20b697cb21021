"""Files in every format compute what the network computes, and say what they are."""

import copy
import json

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from backbones.build import build_backbone
from deploy import FaceEmbedder
from deploy.exporting.converters.onnx import trace
from deploy.exporting.converters.onnx_passes import replace_prelus, slim, store_as_float16
from deploy.exporting.formats import FORMATS
from deploy.exporting.network import ExportNetwork
from deploy.exporting.trial import install
from deploy.networks.exported import open_exported
from deploy.networks.metadata import METADATA_KEY, network_fields
from eval.inference.embedding import TorchRuntime
from tests.helpers.networks import small_network_config
from tests.helpers.training import CPU
from utils.errors import UserError
from utils.openvino_core import openvino_core

FACES = np.random.default_rng(0).integers(0, 256, (5, 112, 112, 3), np.uint8)


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(1)
    network = build_backbone(small_network_config())
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 2)
    return network.eval()


@pytest.fixture(scope="module")
def expected(backbone):
    return TorchRuntime(backbone, CPU.device, 5)(FACES)[0]


def convert(backbone, name, folder, precision="fp32", uint8=False, unit=False, metadata=""):
    kind = FORMATS[name]
    path = folder / f"net{kind.suffix}"
    network = ExportNetwork(backbone, kind.interface(32, uint8, unit))
    kind.convert(network, precision, None, False).save(path, metadata)
    return path


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("unit_output", [False, True], ids=["raw", "unit"])
@pytest.mark.parametrize("uint8", [False, True], ids=["float", "uint8"])
@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_outputs_for_any_batch(backbone, expected, tmp_path, name, uint8, unit_output):
    network = open_exported(convert(backbone, name, tmp_path, uint8=uint8, unit=unit_output), threads=1)
    assert torch.tensor([1e-39]) != 0  # the runtime leaves the arithmetic of this thread as it was
    assert (network.is_uint8, network.embedding_size) == (uint8, 32)
    assert network.shape == ((112, 112, 3) if uint8 else (3, 112, 112))
    expected = unit(expected) if unit_output else expected
    for batch in (1, 2, 5):
        found = network.run(network.to_input(FACES[:batch]))
        assert found.dtype == np.float32 and found.shape == (batch, 32)
        np.testing.assert_allclose(found, expected[:batch], rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_fp16_halves_the_weights(backbone, expected, tmp_path, name):
    sizes = {}
    for precision in ("fp32", "fp16"):
        (tmp_path / precision).mkdir()
        path = convert(backbone, name, tmp_path / precision, precision)
        sizes[precision] = (path.with_suffix(".bin") if name == "openvino" else path).stat().st_size
        found = open_exported(path)(FACES)
        assert ((unit(found) * unit(expected)).sum(axis=1) > 0.999999).all()
    assert sizes["fp16"] < 0.65 * sizes["fp32"]


@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_the_embedder_reads_what_a_file_says(backbone, expected, tmp_path, name):
    point = {"cosine": 0.5, "squared_distance": 1.0, "far": 1e-3, "frr": 0.1}
    metadata = {
        "network": network_fields(small_network_config()),
        "thresholds": {"größe": {"different": 10, "1e-03": point}},
    }
    path = convert(backbone, name, tmp_path, metadata=json.dumps(metadata))
    embedder = FaceEmbedder.load(path)
    assert open_exported(path).metadata == metadata
    assert embedder.model.network["embedding_size"] == 32 and embedder.model.network["genotypes"]
    np.testing.assert_allclose(embedder.embed(FACES), unit(expected), rtol=0, atol=1e-5)
    comparison = embedder.compare(FACES[0], FACES[0])
    assert comparison.same and comparison.threshold == 0.5


def test_a_slim_model_computes_the_same(backbone, tmp_path):
    network = ExportNetwork(backbone, FORMATS["onnx"].interface(32, True, True))
    outputs = []
    for number, change in enumerate([lambda model: None, slim, lambda model: (store_as_float16(model), slim(model))]):
        model = trace(network)
        before = model.ByteSize()
        change(model)
        path = tmp_path / f"{number}.onnx"
        onnx.save(model, path)
        outputs.append(open_exported(path)(FACES))
        if number:
            names = [name for node in model.graph.node for name in (node.name, node.doc_string) if name]
            assert not names and model.ByteSize() < before and not model.graph.value_info
    assert (outputs[0] == outputs[1]).all()
    np.testing.assert_allclose(outputs[2], outputs[0], rtol=0, atol=1e-3)


def test_prelus_become_faster_operations_with_the_same_results(backbone, tmp_path):
    changed = copy.deepcopy(backbone)
    slopes = [module.weight for module in changed.modules() if isinstance(module, nn.PReLU)]
    for slope in slopes:
        slope.data.uniform_(-0.5, 1)
    slopes[0].data[0] = 1.5
    model = trace(ExportNetwork(changed, FORMATS["onnx"].interface(32, False, False)))
    onnx.save(model, tmp_path / "before.onnx")
    replace_prelus(model)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, tmp_path / "after.onnx")
    assert [node.op_type for node in model.graph.node].count("PRelu") == 1  # max(x, 1.5 x) would be another function
    before, after = (open_exported(tmp_path / name)(FACES) for name in ("before.onnx", "after.onnx"))
    assert (before == after).all()


def test_openvino_keeps_prelus_with_slopes_of_the_rank_of_their_inputs(backbone, tmp_path):
    """Slopes (C, 1, 1) would make it convert activations between two layouts."""
    model = openvino_core().read_model(convert(backbone, "openvino", tmp_path))
    ranks = [len(node.input(1).get_partial_shape()) for node in model.get_ops() if node.get_type_name() == "PRelu"]
    assert ranks and set(ranks) == {4}


def test_a_file_is_replaced(backbone, tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "old.xml").write_text("old")
    (tmp_path / "old.bin").write_text("old")
    install(convert(backbone, "openvino", tmp_path / "new"), tmp_path / "old.xml")
    assert open_exported(tmp_path / "old.xml").embedding_size == 32
    assert not list((tmp_path / "new").iterdir())
    for name in ("new/a.mlpackage", "a.mlpackage"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "content").write_text(name)
    install(tmp_path / "new" / "a.mlpackage", tmp_path / "a.mlpackage")
    assert (tmp_path / "a.mlpackage" / "content").read_text() == "new/a.mlpackage"


def test_damaged_metadata(backbone, tmp_path):
    with pytest.raises(UserError, match=r"net\.onnx: its metadata are damaged .*; export it again"):
        open_exported(convert(backbone, "onnx", tmp_path, metadata='{"network": '))
    model = onnx.load(convert(backbone, "onnx", tmp_path))
    assert [prop.key for prop in model.metadata_props] == [] and METADATA_KEY == "pocketnet"


def test_packages_and_precisions_are_checked(monkeypatch):
    kind = FORMATS["openvino"]
    kind.require("openvino", "fp16")
    with pytest.raises(UserError, match=r"--precision int4: not for --to openvino; take fp32 or fp16 or int8"):
        kind.require("openvino", "int4")
    monkeypatch.setattr("deploy.exporting.formats.find_spec", lambda name: None if name == "nncf" else name)
    kind.require("openvino", "fp16")
    with pytest.raises(UserError, match=r"needs nncf; pip install -r requirements-deploy.txt"):
        kind.require("openvino", "int8")
