"""Measures how cost_weight trades accuracy for multiply-adds: the same search with several values of it.

    python benchmarks/experiments/search_cost.py [--weights 0,0.1,0.3,1] [--out output/search_cost] [--seed 0] …

The searches are small, and run several at once; only cost_weight differs. After an interruption the same command does
only what is missing. Writes results.txt to --out.
"""

import math
import os
import sys
import time
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: import modules from the project folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from backbones.genotypes import parse_genotype
from benchmarks.experiments.commands import ROOT, command
from benchmarks.experiments.kept_runs import finish_all
from benchmarks.experiments.random_cells import network_cost
from benchmarks.experiments.search_runs import SearchRun
from config import CommandParser
from utils.datasets.face_dataset import FaceDataset
from utils.errors import UserError, run_cli

FACES = ROOT / "data/faces_search"
PEOPLE = ["--people", "60", "--shots", "8", "--test-people", "4", "--pairs", "20"]
# First order and two nodes per cell, or four searches would take half an hour. There are few steps, so the learning
# rates are high.
SEARCH = [
    f"rec={FACES}", "channel=4", "n_layers=4", "n_nodes=2", "second_order=False", "num_epoch=5", "batch_size=16",
    "lr=1.6", "alpha_lr=0.03", "log_step=5", "search_eval=120",
]  # fmt: skip
DERIVED = 8, 6, 128  # channel, n_layers and embedding_size of the derived network


def table(epochs: dict[float, dict[str, Any]]) -> str:
    """Returns a row for each cost_weight, from the last line of its search's genotypes.jsonl."""
    lines = [
        f"{'':>11}{'relaxed cells':>15}{'derived network':>17}{'supernet':>12}{'skip_connect':>14}",
        f"{'cost_weight':>11}{'M mult.-adds':>15}{'M mult.-adds':>17}{'val top-1 %':>12}{'normal cell':>14}",
    ]
    for weight, epoch in epochs.items():
        derived = network_cost(parse_genotype(epoch["genotype"]), *DERIVED).multiply_adds / 1e6
        top1 = 100 * epoch["supernet_val"]
        lines.append(f"{weight:>11g}{epoch['cost']:>15.2f}{derived:>17.2f}{top1:>12.2f}{epoch['skips']:>14}")
    return "\n".join(lines)


def weights_of(text: str) -> list[float]:
    """Parses distinct non-negative numbers separated by commas. Raises UserError."""
    try:
        weights = [float(part) for part in text.split(",")]
    except ValueError:
        weights = [-1.0]
    if not all(0 <= weight < math.inf for weight in weights) or len(set(weights)) < len(weights):
        raise UserError(f"--weights {text}: should be distinct numbers from 0, separated by commas")
    return weights


def main() -> None:
    """Runs the experiment and prints its table."""
    parser = CommandParser(__doc__.split("\n")[0])
    parser.add_argument("--weights", default="0,0.1,0.3,1", help="values of cost_weight (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("output/search_cost"), help="folder of all runs (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="random seed of every search (%(default)s)")
    parser.add_argument("changes", nargs="*", metavar="field=value", help="config field of every search")
    args = parser.parse()
    weights = weights_of(args.weights)
    start = time.perf_counter()
    out, cores = args.out.absolute(), os.cpu_count() or 1
    command(["data/make_demo_faces.py", "--out", str(FACES), *PEOPLE], cores)
    data = FaceDataset(FACES).fingerprint
    fields = [*SEARCH, *args.changes, f"seed={args.seed}"]
    runs = {weight: SearchRun(out / f"{weight:g}", [*fields, f"cost_weight={weight}"], data) for weight in weights}
    finish_all([*runs.values()], cores)
    epochs = {weight: run.last_epoch() for weight, run in runs.items()}
    (out / "results.txt").write_text(table(epochs) + "\n")
    minutes = (time.perf_counter() - start) / 60
    channel, n_layers, _ = DERIVED
    print(f"\n{table(epochs)}\n\nDerived networks of {n_layers} cells, {channel} channels")
    print(f"{minutes:.1f} minutes, {cores} cores; all in {out}")


if __name__ == "__main__":
    run_cli(main)
