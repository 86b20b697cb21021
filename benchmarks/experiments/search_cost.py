"""Measures how cost_weight trades accuracy for multiply-adds: the same search with several values of it.

    python benchmarks/experiments/search_cost.py [--weights 0,0.1,0.3,1] [--out output/search_cost] [--seed 0] …

It runs the search of benchmarks/experiments/demo_search.py with smaller cells and more steps, several at once; only
cost_weight differs. After an interruption the same command does only the missing ones. Writes results.txt to --out.
"""

import json
import math
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: import modules from the project folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from backbones.genotypes import parse_genotype
from benchmarks.experiments.commands import command
from benchmarks.experiments.demo_search import CELLS, CHANNEL, FACES, PEOPLE, cost, search
from config import CommandParser
from utils.errors import UserError, run_cli

# First order and two nodes per cell, or four searches would take half an hour; lr is high, for 75 steps.
CHANGES = ["n_nodes=2", "second_order=False", "num_epoch=5", "lr=1.6"]


def table(epochs: dict[float, dict[str, Any]]) -> str:
    """Returns a row for each cost_weight, from the last line of its search's genotypes.jsonl."""
    lines = [
        f"{'':>11}{'relaxed cells':>15}{'derived network':>17}{'supernet':>12}{'skip_connect':>14}",
        f"{'cost_weight':>11}{'M mult.-adds':>15}{'M mult.-adds':>17}{'val top-1 %':>12}{'normal cell':>14}",
    ]
    for weight, epoch in epochs.items():
        derived = cost(parse_genotype(epoch["genotype"]), CHANNEL)
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
    command(["data/make_demo_faces.py", "--out", FACES, *PEOPLE], cores)
    parallel = min(cores, len(weights))

    def search_and_read_last_epoch(weight: float) -> dict[str, Any]:
        folder = out / f"{weight:g}"
        search(folder, [*CHANGES, *args.changes, f"cost_weight={weight}"], args.seed, cores // parallel)
        return json.loads((folder / "search/genotypes.jsonl").read_text().splitlines()[-1])

    with ThreadPoolExecutor(parallel) as pool:
        epochs = dict(zip(weights, pool.map(search_and_read_last_epoch, weights), strict=True))
    (out / "results.txt").write_text(table(epochs) + "\n")
    minutes = (time.perf_counter() - start) / 60
    print(f"\n{table(epochs)}\n\nDerived networks of {CELLS} cells, {CHANNEL} channels")
    print(f"{minutes:.1f} minutes, {cores} cores; all in {out}")


if __name__ == "__main__":
    run_cli(main)
