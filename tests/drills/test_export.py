"""Export to int8, which takes a minute or more: calibration, and accuracy control."""

import numpy as np
import onnx
import pytest
import torch

from deploy.exporting.calibration import load_calibration_faces
from deploy.exporting.converters import quantisation
from deploy.exporting.converters.onnx import OnnxConversion
from deploy.exporting.network import ExportNetwork, Interface
from deploy.exporting.proof import row_cosines
from deploy.networks.exported import open_exported
from eval.inference.embedding import TorchRuntime
from tests.helpers.exports import export, write_network_and_data
from tests.helpers.training import CPU

pytest.importorskip("nncf", reason="NNCF is not installed: pip install -r requirements-deploy.txt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A network without an evaluation, and data with a verification set."""
    return write_network_and_data(tmp_path_factory.mktemp("int8"))


@pytest.mark.parametrize(("name", "file"), [("onnx", "net.onnx"), ("openvino", "net.xml")])
def test_int8(folder, tmp_path, name, file):
    """An int8 file; whether it is faster depends on the machine, so it is written with --force."""
    done = export(
        folder, "--to", name, "--precision", "int8", "--force", "--unit-output",
        "--out", tmp_path / file, "--calibration", folder / "data", "--max-drop", "100",
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    network = open_exported(tmp_path / file)
    faces = load_calibration_faces(folder / "data", [])
    for batch in (1, 2, 5):
        np.testing.assert_allclose(np.linalg.norm(network(faces[:batch]), axis=1), 1, atol=1e-5)
    metadata = network.metadata
    assert metadata["precision"] == "int8" and metadata["cosine_to_pytorch"]["worst"] > 0.9


def test_accuracy_control_keeps_layers_in_float(folder, monkeypatch):
    from deploy.networks.checkpoints import open_checkpoint

    backbone, _, _ = open_checkpoint(str(folder / "run"), None)
    monkeypatch.setattr(quantisation, "CONTROL_COSINE", 0.9995)  # a small network loses little by int8
    with torch.no_grad():  # a channel a thousand times as large as the others, which int8 resolves badly
        backbone.stem[1].weight[0] *= 1000
    faces = load_calibration_faces(folder / "data", [])
    expected = TorchRuntime(backbone, CPU.device, 40)(faces)[0]
    network = ExportNetwork(backbone, Interface(False, False, False, 32))
    quantised, cosines = [], []
    for number, controlled in enumerate((False, True)):
        conversion = OnnxConversion(network, "int8", faces, controlled)
        conversion.save(folder / f"{number}.onnx")
        cosines.append(row_cosines(open_exported(folder / f"{number}.onnx")(faces), expected).mean())
        nodes = onnx.load(folder / f"{number}.onnx").graph.node
        quantised.append(sum(node.op_type == "QuantizeLinear" for node in nodes))
    assert cosines[0] < 0.9995 <= cosines[1] + 1e-4 and quantised[0] > quantised[1] > 0
