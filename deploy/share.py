"""Writes a folder to share a network: python -m deploy.share OUT [--model PATH]

OUT gets model.safetensors, config.json, thresholds.json and a README.md with the accuracies that evaluations found, in
the layout of the Hugging Face Hub; `hf upload NAME OUT` uploads it. FaceEmbedder.load("OUT") and --model OUT load it,
which runs no code from the folder.
"""

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors.torch import save as to_safetensors
from torch import nn

from config import CommandParser, Config, path_argument
from config.saved import CONFIG_FILE, find_saved_config
from deploy.networks.checkpoints import open_checkpoint
from deploy.networks.metadata import network_fields
from deploy.networks.thresholds import RESULTS_FILES, THRESHOLDS_FILE, SetEntries, read_evaluation
from deploy.publishing.folders import is_taken, write_folder
from deploy.publishing.model_card import ModelCard
from eval.inputs.pairs import is_own_set
from utils.checkpoints.weights import backbone_name
from utils.errors import UserError, run_cli
from utils.filesystem import sha256
from utils.flops import count_operations

SAFETENSORS_FILE = "model.safetensors"  # the Hub's name for it


def main() -> None:
    """Parses the command line and writes the folder."""
    args = parse_arguments()
    if is_taken(args.out):
        raise UserError(f"{args.out}: exists already", fix="name another folder, or remove it")
    backbone, config, weights = open_checkpoint(args.model, args.config)
    digest = sha256(weights)
    results = without_warnings(read_evaluation(weights, digest, RESULTS_FILES, config.test_output))
    results = {name: entry for name, entry in results.items() if {"accuracy", "interval", "pairs"} <= entry.keys()}
    thresholds = without_warnings(read_evaluation(weights, digest, THRESHOLDS_FILE, config.test_output))
    results = name_as_thresholds(results, thresholds)
    files = collect_files(args, backbone, config, results, thresholds)
    write_folder(args.out, files)
    print(f"{args.out}: {', '.join(files)}; {len(files[SAFETENSORS_FILE]):,} bytes of weights")
    if results and thresholds:
        print(f"Check its README.md; hf upload NAME {args.out} uploads the folder, --model {args.out} opens it")
    else:
        config_option = "" if find_saved_config(weights) else f" --config {args.config or 'FILE'}"
        print(
            f"No evaluation of {weights} was found: python eval/eval.py output={weights}{config_option}, remove "
            f"{args.out}, then this command again"
        )


def parse_arguments() -> argparse.Namespace:
    """Parses the command line."""
    parser = CommandParser("Write a folder to share a network.")
    parser.add_argument("out", type=path_argument, metavar="OUT", help="the folder to write")
    parser.add_argument("--model", metavar="PATH", help="a checkpoint or a run's folder (default: config/config.py)")
    parser.add_argument("--config", metavar="FILE", help="config of a checkpoint that has no config.json beside it")
    parser.add_argument("--name", help="of the network (default: the folder's)")
    parser.add_argument("--data", help="what it was trained on")
    parser.add_argument("--license", default="other", help="of the weights, as the Hub spells it (%(default)s)")
    return parser.parse()


def collect_files(
    args: argparse.Namespace, backbone: nn.Module, config: Config, results: SetEntries, thresholds: SetEntries
) -> dict[str, str | bytes]:
    """Returns the contents of the files by name."""
    folder = args.out.resolve().name
    network = network_fields(config)
    card = ModelCard(
        name=args.name or folder,
        folder=folder,
        data=args.data or "",
        license=args.license,
        network=network,
        cost=count_operations(backbone),
        results=results,
        thresholds=thresholds,
    )
    weights = to_safetensors({name: value.contiguous() for name, value in backbone.state_dict().items()})
    shared_thresholds = to_shared_entries(thresholds, hashlib.sha256(weights).hexdigest())
    return {
        SAFETENSORS_FILE: weights,
        CONFIG_FILE: to_json(network),
        THRESHOLDS_FILE: to_json({backbone_name(Path(SAFETENSORS_FILE)): shared_thresholds}),
        "README.md": card.format(),
    }


def without_warnings(entries: SetEntries) -> SetEntries:
    """Returns the entries without those of photos that were not aligned."""
    return {name: entry for name, entry in entries.items() if not entry.get("warning")}


def name_as_thresholds(results: SetEntries, thresholds: SetEntries) -> SetEntries:
    """Returns results under the names that thresholds.json has for the same pairs: "folder:NAME" for own photos."""
    names = {entry.get("pairs_sha256"): name for name, entry in thresholds.items() if is_own_set(name)}
    return {names.get(entry.get("pairs_sha256"), name): entry for name, entry in results.items()}


def to_shared_entries(entries: SetEntries, digest: str) -> SetEntries:
    """Returns thresholds for weights of another SHA-256, without the folder that they came from."""
    return {
        name: {key: value for key, value in entry.items() if key != "weights"} | {"sha256": digest}
        for name, entry in entries.items()
    }


def to_json(content: Any) -> str:
    """Returns the text of a JSON file."""
    return json.dumps(content, indent=2) + "\n"


if __name__ == "__main__":
    run_cli(main)
