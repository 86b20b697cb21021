"""Writes a network as a file for other runtimes: python -m deploy.export --to onnx [--precision int8] [--model PATH]

    python -m deploy.export --to onnx --model output/run                          the last checkpoint of a run
    python -m deploy.export --to openvino --precision int8 --calibration FACES    int8, calibrated with aligned faces
    python -m deploy.export --to onnx --model X.pth rec=data/lfw val_targets=lfw  checked on LFW
    python -m deploy.export --to onnx --folder PHOTOS --align                     checked on your own photos

The file is written only if it is proved: its embeddings agree with PyTorch's, its accuracy on a verification set drops
by no more than --max-drop, and it is not slower than fp32 in the same format (fp32: than PyTorch). Otherwise the
command says why, and ends with exit code 1; --force writes the file all the same. The file says what it expects, which
network it is, and holds thresholds for the embeddings that it gives. FaceEmbedder.load and --model open it.
"""

import argparse
import sys
from pathlib import Path

import torch
from torch import nn

from config import (
    CommandParser,
    Config,
    ConfigError,
    add_config_arguments,
    collect_overrides,
    path_argument,
    require_data,
    warn_unused_fields,
)
from deploy.exporting.calibration import load_calibration_faces
from deploy.exporting.description import describe
from deploy.exporting.formats import FORMATS, PRECISIONS
from deploy.exporting.network import ExportNetwork
from deploy.exporting.proof import Prover, file_size
from deploy.exporting.trial import Exporter, Trial, install
from deploy.networks.checkpoints import open_checkpoint
from eval.inputs.arguments import add_photo_arguments, load_photo_pairs
from eval.inputs.sets import VerificationSet, load_verification_sets
from utils.checkpoints.weights import backbone_name
from utils.distributed.process_group import World
from utils.errors import UserError, run_cli
from utils.filesystem import ensure_writable_folder, exists_as_non_folder
from utils.logs.logger import init_logging
from utils.temporary_folder import temporary_folder


def main() -> None:
    """Parses the command line, converts the network, proves the file and writes it."""
    args = parse_arguments()
    kind = FORMATS[args.to]
    kind.require(args.to, args.precision)
    photos = load_photo_pairs(args)
    backbone, config, weights = open_checkpoint(args.model, args.config, collect_overrides(args))
    out = args.out or weights.with_name(f"{backbone_name(weights)}-{args.precision}{kind.suffix}")
    check_out(out, kind.suffix)
    if photos is None:
        require_pairs(config)
    network = ExportNetwork(backbone, kind.interface(config.embedding_size, args.uint8_input, args.unit_output))
    try:
        ensure_writable_folder(out.parent)
        with temporary_folder(out.parent, ".export-") as folder:
            init_logging(folder / "export.log")
            warn_unused_fields(config, "eval")
            sets = load_verification_sets(config, photos, World(0, 1, torch.device("cpu")))
            trial = try_export(args, backbone, config, network, sets, folder)
            print(f"\n{weights} as {args.to}, {args.precision}\n{trial.format()}", flush=True)
            if trial.faults and not args.force:
                print(f"\nNot written: {'; '.join(trial.faults)}. --force writes it all the same.", flush=True)
                sys.exit(1)
            metadata = describe(config, weights, args.precision, network.interface, trial.agreement, sets, photos)
            trial.conversion.save(trial.path, metadata)
            kind.open(trial.path, 0)  # raises if the file is damaged
            install(trial.path, out)
    except OSError as error:
        raise UserError(f"--out {out}: {error.strerror or error}", fix="name another file") from None
    print(f"\n{out}: {file_size(out):,} bytes")
    if trial.faults:
        print(f"Written in spite of this: {'; '.join(trial.faults)}")
    if kind.runs_here:
        print(f"Compare photos with it: python -m deploy.compare A.jpg B.jpg --model {out}")


def try_export(
    args: argparse.Namespace,
    backbone: nn.Module,
    config: Config,
    network: ExportNetwork,
    sets: list[VerificationSet],
    folder: Path,
) -> Trial:
    """Converts the network to a file in a folder and proves it. Raises UserError and OSError."""
    needs_faces = args.precision == "int8"
    faces = load_calibration_faces(args.calibration or Path(config.rec), sets) if needs_faces else None
    prover = Prover(backbone, config, sets, args.unit_output)
    return Exporter(network, FORMATS[args.to], prover, folder).run(args.precision, args.max_drop, faces)


def parse_arguments() -> argparse.Namespace:
    """Parses and checks the command line."""
    parser = CommandParser("Write a network as a file for other runtimes.")
    add_config_arguments(parser)
    parser.add_argument("--to", required=True, choices=[*FORMATS], help="format of the file")
    parser.add_argument("--precision", default="fp32", choices=PRECISIONS, help="of the weights (%(default)s)")
    parser.add_argument("--model", metavar="PATH", help="a checkpoint or a run's folder (default: config/config.py)")
    parser.add_argument(
        "--out", type=path_argument, metavar="FILE", help="the file to write (default: beside the weights)"
    )
    parser.add_argument(
        "--uint8-input", action="store_true", help="take pixels (B, 112, 112, 3) from 0 to 255 in place of floats"
    )
    parser.add_argument("--unit-output", action="store_true", help="give embeddings of length 1")
    parser.add_argument(
        "--calibration", type=path_argument, metavar="FOLDER",
        help="train.rec or aligned faces to calibrate int8 with (default: rec of the config)",
    )  # fmt: skip
    parser.add_argument(
        "--max-drop", type=float, default=0.2, help="allowed drop of the accuracy, in points (%(default)s)"
    )
    parser.add_argument("--force", action="store_true", help="write the file even if the proof fails")
    add_photo_arguments(parser)
    args = parser.parse()
    if not args.max_drop >= 0:
        raise UserError(f"--max-drop {args.max_drop:g}: should be at least 0")
    return args


def require_pairs(config: Config) -> None:
    """Raises UserError unless the config names verification sets that exist."""
    try:
        require_data(config)
    except ConfigError as error:
        fix = "name verification pairs: rec=FOLDER val_targets=lfw, or --folder PHOTOS --align"
        raise UserError(error.problem, fix) from None


def check_out(out: Path, suffix: str) -> None:
    """Raises UserError unless the path can become a file of the format."""
    if out.suffix != suffix:
        raise UserError(f"--out {out}: should end in {suffix}")
    if exists_as_non_folder(out.parent):
        raise UserError(f"--out {out}: {out.parent} is not a folder", fix="name another file")
    is_package = suffix == ".mlpackage" and (out / "Manifest.json").is_file()  # an earlier export, a folder
    if out.is_dir() and not is_package:
        raise UserError(f"--out {out}: is a folder", fix="name a file")
    if suffix == ".xml" and out.with_suffix(".bin").exists() and not out.exists():
        raise UserError(
            f"--out {out}: {out.with_suffix('.bin').name} beside it is another file", fix="name another file"
        )


if __name__ == "__main__":
    run_cli(main)
