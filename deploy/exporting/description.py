"""Metadata of an exported file, which `deploy.networks.exported` reads."""

import json
from pathlib import Path
from typing import Any

from config import Config
from deploy.exporting.network import Interface
from deploy.exporting.proof import Agreement
from deploy.networks.metadata import PREPROCESSING, network_fields
from eval.inputs.pairs import PhotoPairs
from eval.inputs.sets import VerificationSet
from eval.results import to_thresholds_entry
from utils.checkpoints.weights import backbone_name
from utils.filesystem import sha256


def describe(
    config: Config,
    weights: Path,
    precision: str,
    interface: Interface,
    agreement: Agreement,
    sets: list[VerificationSet],
    photos: PhotoPairs | None,
) -> str:
    """Returns the metadata of a file as JSON.

    Its thresholds hold for the embedding of an image alone, which the file gives, where those of an evaluation hold for
    the sum with that of its hflip.

    weights: the file that the network is from. photos: where the set is the user's own, whose name then says so.
    """
    prefix = photos.prefix if photos else ""
    floats = "(x / 255 - 0.5) / 0.5 of pixels x from 0 to 255"
    content: dict[str, Any] = {
        "network": network_fields(config),
        "step": backbone_name(weights),
        "weights_sha256": sha256(weights),
        "precision": precision,
        "preprocessing": PREPROCESSING,
        "input": {
            "shape": ["batch", *interface.shape],
            "type": "uint8" if interface.uint8 else "float32",
            "values": "pixels from 0 to 255" if interface.uint8 else floats,
        },
        "output": {"shape": ["batch", interface.embedding_size], "unit_length": interface.unit},
        "thresholds": {prefix + eval_set.name: _thresholds(agreement, eval_set, photos) for eval_set in sets},
        "accuracy": {
            prefix + name: {"accuracy": score.accuracy, "interval": score.interval, "pairs": score.pairs}
            for name, score in agreement.scores.items()
        },
        "cosine_to_pytorch": {"mean": float(agreement.cosines.mean()), "worst": agreement.worst},
    }
    return json.dumps(content)


def _thresholds(agreement: Agreement, eval_set: VerificationSet, photos: PhotoPairs | None) -> dict[str, Any]:
    hint = photos.more_pairs_hint if photos else None
    entry = to_thresholds_entry(agreement.single[eval_set.name], hint) | {"pairs_sha256": eval_set.digest}
    return entry | ({"warning": eval_set.warning} if eval_set.warning else {})
