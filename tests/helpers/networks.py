"""Small networks on disk, as training and evaluation leave them."""

import json
from pathlib import Path
from typing import Any

import torch

from backbones.build import build_backbone
from config import Config, load_config, save_config
from deploy.exporting.converters.onnx import OnnxConversion
from deploy.exporting.network import ExportNetwork, Interface
from deploy.networks.metadata import METADATA_KEY, network_fields
from tests.helpers.paths import ROOT
from utils.checkpoints.weights import load_weights, save_weights
from utils.filesystem import sha256

SMALL = ["channel=4", "n_layers=4", "embedding_size=32"]


def write_network(folder: Path, *overrides: str, cosine: float | None = 0.99, step: int = 5) -> Path:
    """Writes a randomly initialised network and its config.json to a folder, and returns the file of its weights.

    cosine: the threshold of thresholds.json at FAR 1e-2 and 1e-3; None: no such file.
    """
    torch.manual_seed(1)
    config = load_config(ROOT / "config" / "config_demo.py", [*SMALL, f"output={folder}", *overrides])
    backbone = build_backbone(config)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{step}backbone.pth"
    save_weights(path, backbone)
    save_config(config)
    if cosine is not None:
        write_evaluation(path, cosine)
    return path


def write_evaluation(weights: Path, cosine: float, name: str = "demo") -> None:
    """Writes results.json and thresholds.json of the weights to their folder."""
    point = {"cosine": cosine, "squared_distance": 2 - 2 * cosine, "far": 0.001, "frr": 0.25}
    stamp = {"weights": ".", "sha256": sha256(weights), "pairs_sha256": "0"}
    counts = {"pairs": 6000, "different": 3000}
    thresholds = stamp | counts | {"1e-02": point, "1e-03": point, "1e-04": "needs at least 10000 different pairs"}
    results = stamp | counts | {"accuracy": 0.975, "interval": [0.97, 0.98]}
    step = weights.name.removesuffix("backbone.pth")
    for file, entry in (("thresholds.json", thresholds), ("results.json", results)):
        (weights.parent / file).write_text(json.dumps({step: {name: entry}}))


def write_onnx(
    path: Path,
    cosine: float | None = 0.99,
    config: Config | None = None,
    weights: Path | None = None,
    takes_pixels: bool = True,
) -> Path:
    """Writes a network as an exported .onnx file and returns its path.

    cosine: the threshold at FAR 1e-3 on the set demo; None: no thresholds. config: of a small network by default.
    weights: a checkpoint; None: random weights. takes_pixels: whether inputs are uint8 (B, 112, 112, 3) and outputs of
    length 1; else inputs are floats (B, 3, 112, 112) and outputs of any length.
    """
    torch.manual_seed(1)
    config = config or small_network_config()
    backbone = build_backbone(config)
    if weights:
        load_weights(backbone, weights)
    interface = Interface(takes_pixels, False, takes_pixels, config.embedding_size)
    OnnxConversion(ExportNetwork(backbone, interface), "fp32").save(path)
    set_threshold(path, cosine, network_fields(config))
    return path


def set_threshold(path: Path, cosine: float | None, network: dict[str, Any] | None = None) -> None:
    """Writes the metadata of an exported .onnx file: its network, and a threshold at FAR 1e-3, or none."""
    import onnx  # here: most tests write no .onnx file

    thresholds = {} if cosine is None else {"demo": {"pairs": 6000, "different": 3000, "1e-03": {"cosine": cosine}}}
    model = onnx.load(path)
    known = {entry.key: entry.value for entry in model.metadata_props}
    network = network or json.loads(known[METADATA_KEY])["network"]
    onnx.helper.set_model_props(model, {METADATA_KEY: json.dumps({"network": network, "thresholds": thresholds})})
    onnx.save(model, path)


def small_network_config() -> Config:
    """Returns the config of the networks that `write_network` writes."""
    return load_config(ROOT / "config" / "config_demo.py", SMALL)
