"""Measures the files that deploy/export.py writes of a network: size, agreement with PyTorch, accuracy, speed.

    python benchmarks/deploy.py --model FILE rec=FOLDER val_targets=lfw --calibration FOLDER [--to onnx openvino]

Prints a row for each format and precision. Speeds are measured in turn with PyTorch eager: times PyTorch is the ratio
for one image with one thread.
"""

import argparse
import sys
import tempfile
from pathlib import Path

if not __package__:  # run as a script: import modules from the project folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from config import CommandParser, add_config_arguments, collect_overrides, path_argument
from deploy.exporting.calibration import load_calibration_faces
from deploy.exporting.formats import FORMATS, PRECISIONS
from deploy.exporting.network import ExportNetwork
from deploy.exporting.proof import Prover
from deploy.exporting.speed import BATCH, all_threads
from deploy.exporting.trial import THIS_FILE, Exporter, Trial
from deploy.networks.checkpoints import open_checkpoint
from eval.inputs.sets import load_verification_sets
from utils.distributed.process_group import World
from utils.errors import UserError, run_cli
from utils.logs.logger import init_logging


def main() -> None:
    """Runs the benchmark and prints its table."""
    parser = CommandParser(__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_config_arguments(parser)
    parser.add_argument("--model", required=True, metavar="PATH", help="a checkpoint or a run's folder")
    parser.add_argument("--to", nargs="+", choices=[*FORMATS], default=["onnx", "openvino"], help="formats")
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=PRECISIONS, help="precisions (all)")
    parser.add_argument("--calibration", type=path_argument, metavar="FOLDER", help="faces to calibrate int8 with")
    parser.add_argument("--max-drop", type=float, default=0.2, help="of the accuracy, in points (%(default)s)")
    args = parser.parse()
    if "int8" in args.precision and not args.calibration:
        raise UserError(
            "--calibration: needed for int8", fix="name a folder of faces, or leave int8 out of --precision"
        )
    backbone, config, weights = open_checkpoint(args.model, args.config, collect_overrides(args))
    with tempfile.TemporaryDirectory() as name:
        init_logging(Path(name, "log"))
        sets = load_verification_sets(config, None, World(0, 1, torch.device("cpu")))
        faces = load_calibration_faces(args.calibration, sets) if args.calibration else None
        prover = Prover(backbone, config, sets, unit=False)
        rows = []
        for to in args.to:
            kind = FORMATS[to]
            network = ExportNetwork(backbone, kind.interface(config.embedding_size, uint8=False, unit=False))
            folder = Path(name, to)
            folder.mkdir()
            exporter = Exporter(network, kind, prover, folder)
            for precision in args.precision:
                if precision in kind.precisions:
                    kind.require(to, precision)
                    rows.append(format_row(to, precision, exporter.run(precision, args.max_drop, faces)))
                    print(rows[-1], flush=True)
    names = ", ".join(eval_set.name for eval_set in sets)
    print(f"\n{weights}, {names}, {all_threads()} threads, torch {torch.__version__}")
    head = (
        "| file | bytes | cosine, mean | worst | accuracy in % (95 % interval), PyTorch's, McNemar p | ms | "
        "times as fast as PyTorch | images/s | PyTorch's | faults |"
    )
    print("\n".join([head, "|" + "---|" * 10, *rows]))


def format_row(to: str, precision: str, trial: Trial) -> str:
    """Returns the row of a file.

    Speeds: milliseconds of one image with one thread, and images a second of 32 with all threads.
    """
    cosines = trial.agreement.cosines
    scores, comparisons = trial.agreement.scores.values(), trial.agreement.comparisons
    accuracies = ", ".join(
        f"{100 * score.accuracy:.2f} ({100 * score.interval[0]:.2f} to {100 * score.interval[1]:.2f}), "
        f"{100 * comparison.a:.2f}, p {comparison.p:.2g}"
        for score, comparison in zip(scores, comparisons, strict=True)
    )
    cells = [
        f"{to} {precision}",
        f"{trial.size:,}",
        f"{cosines.mean():.6f}",
        f"{trial.agreement.worst:.6f}",
        accuracies,
    ]
    if trial.latency and trial.throughput:
        cells += [
            f"{1000 * trial.latency.typical(THIS_FILE):.1f}", f"{trial.latency.ratio('PyTorch', THIS_FILE):.1f}",
            f"{BATCH / trial.throughput.typical(THIS_FILE):.0f}", f"{BATCH / trial.throughput.typical('PyTorch'):.0f}",
        ]  # fmt: skip
    else:
        cells += ["not measured"] * 4
    return f"| {' | '.join([*cells, '; '.join(trial.faults) or 'none'])} |"


if __name__ == "__main__":
    run_cli(main)
