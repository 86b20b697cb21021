"""Metadata of the network in a shared folder or an exported file: JSON of plain values."""

import json
from pathlib import Path
from typing import Any

from backbones.names import resolve_network_name
from config import Config
from utils.errors import UserError
from utils.registry import BACKBONES

METADATA_KEY = "pocketnet"  # under which an exported file keeps the JSON
METADATA_FILE = "pocketnet.json"  # its name in the archive at the end of a .tflite
# The input of a network, in words for people who run the file elsewhere.
PREPROCESSING = "face aligned to the ArcFace template, 112×112 pixels, RGB"


def network_fields(config: Config) -> dict[str, Any]:
    """Returns the config fields that define the network, by name: enough to build it again."""
    name = resolve_network_name(config.net_name)
    fields = {"net_name": name, "embedding_size": config.embedding_size}
    fields |= {field: getattr(config, field) for field in BACKBONES[name].fields}
    if "genotype" in fields:
        fields["genotypes"] = {config.genotype: config.genotypes[config.genotype]}
    return fields


def parse_metadata(text: str, path: Path) -> dict[str, Any]:
    """Returns the metadata of an exported file, empty for files of other projects. Raises UserError if damaged."""
    if not text:
        return {}
    try:
        metadata = json.loads(text)
        if not isinstance(metadata, dict) or not isinstance(metadata.get("network", {}), dict):
            raise ValueError("not an object")
        thresholds = metadata.get("thresholds", {})
        if not isinstance(thresholds, dict) or not all(isinstance(entry, dict) for entry in thresholds.values()):
            raise ValueError("thresholds are not objects")
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: its metadata are damaged ({error!s:.60})", fix="export it again") from None
    return metadata
