"""Command-line options shared by the commands that use a network."""

import argparse

from config import path_argument
from deploy.embedder import FaceEmbedder


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds --model, --config, --detector and --largest to the parser."""
    parser.add_argument(
        "--model", metavar="PATH",
        help="a checkpoint, a run's output folder, a shared folder or an exported file "
        "(default: output of config/config.py)",
    )  # fmt: skip
    parser.add_argument("--config", metavar="FILE", help="config of a checkpoint that has no config.json beside it")
    parser.add_argument(
        "--detector", type=path_argument, metavar="FILE", help="YuNet as ONNX file (default: BlazeFace)"
    )
    parser.add_argument(
        "--largest", action="store_true", help="of several faces in a photo, take the largest near the middle"
    )


def add_threshold_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds --far and --set to the parser."""
    parser.add_argument(
        "--far", type=float, default=1e-3, help="false accept rate that the threshold stands for (%(default)g)"
    )
    parser.add_argument("--set", metavar="NAME", help="verification set of the threshold (default: your own photos)")


def load_embedder(args: argparse.Namespace) -> FaceEmbedder:
    """Opens the network that the options name. Raises UserError."""
    return FaceEmbedder.load(args.model, config=args.config, detector=args.detector, largest=args.largest)
