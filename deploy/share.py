"""Writes a folder to share a network: python -m deploy.share OUT [--model PATH]

OUT gets model.safetensors, config.json, thresholds.json and a README.md with the accuracies that evaluations found, in
the layout of the Hugging Face Hub; `hf upload NAME OUT` uploads it. FaceEmbedder.load("OUT") and --model OUT load it,
which runs no code from the folder.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import save as save_safetensors

from config import CommandParser, path_argument
from config.saved import CONFIG_FILE
from deploy.checkpoints import open_checkpoint
from deploy.metadata import network_fields
from deploy.model_card import ModelCard
from deploy.thresholds import RESULTS_FILES, THRESHOLDS_FILE, SetEntries, read_evaluation
from utils.checkpoints.weights import backbone_name
from utils.errors import UserError, run_cli
from utils.filesystem import ensure_writable_folder, sha256, write_atomic, write_files, write_text_atomic
from utils.flops import count_operations

SAFETENSORS_FILE = "model.safetensors"  # the Hub's name for it


def main() -> None:
    """Parses the command line and writes the folder."""
    parser = CommandParser("Write a folder to share a network.")
    parser.add_argument("out", type=path_argument, metavar="OUT", help="the folder to write")
    parser.add_argument("--model", metavar="PATH", help="a checkpoint or a run's folder (default: config/config.py)")
    parser.add_argument("--config", metavar="FILE", help="config of a checkpoint that has no config.json beside it")
    parser.add_argument("--name", help="of the network (default: the folder's)")
    parser.add_argument("--data", help="what it was trained on")
    parser.add_argument("--license", default="other", help="of the weights, as the Hub spells it (%(default)s)")
    args = parser.parse()
    try:
        is_taken = args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir()))
    except OSError as error:
        raise UserError(f"{args.out}: {error.strerror}", fix="name another folder") from None
    if is_taken:
        raise UserError(f"{args.out}: exists already", fix="name another folder, or remove it")
    backbone, config, file = open_checkpoint(args.model, args.config)
    results, thresholds = (
        without_warnings(read_evaluation(file, sha256(file), pattern, config.test_output), keys)
        for pattern, keys in ((RESULTS_FILES, {"accuracy", "interval", "pairs"}), (THRESHOLDS_FILE, set()))
    )
    content = save_safetensors({name: value.contiguous() for name, value in backbone.state_dict().items()})
    folder = args.out.resolve().name
    card = ModelCard(
        args.name or folder, folder, args.data or "", args.license, network_fields(config), count_operations(backbone),
        results, thresholds,
    )  # fmt: skip
    try:
        ensure_writable_folder(args.out)
        write_atomic(args.out / SAFETENSORS_FILE, lambda stream: stream.write(content))
        digest = sha256(args.out / SAFETENSORS_FILE)
    except OSError as error:
        raise UserError(f"{args.out}: {error.strerror or error}", fix="name another folder") from None
    texts = {
        CONFIG_FILE: to_json(network_fields(config)),
        THRESHOLDS_FILE: to_json({backbone_name(args.out / SAFETENSORS_FILE): to_shared_entries(thresholds, digest)}),
        "README.md": card.format(),
    }
    writers: dict[Path, Callable[[Path], object]] = {
        args.out / name: lambda path, text=text: write_text_atomic(path, text) for name, text in texts.items()  # type: ignore[misc]
    }  # fmt: skip
    write_files(writers, "free disk space, or name another folder")
    print(f"{args.out}: {SAFETENSORS_FILE} ({len(content):,} bytes), {', '.join(texts)}")
    if not results or not thresholds:
        print(f"No evaluation of {file} was found: python eval/eval.py output={file}, then this command again")


def without_warnings(entries: SetEntries, keys: set[str]) -> SetEntries:
    """Returns the entries that are complete, without those of photos that were not aligned."""
    return {name: entry for name, entry in entries.items() if not entry.get("warning") and keys <= entry.keys()}


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
