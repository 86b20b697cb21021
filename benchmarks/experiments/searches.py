"""Runs architecture searches, and ranks the cells that they find among the random cells of benchmarks/cells.json.

    python -m benchmarks.experiments.searches [--seeds 3] [--only first-order,…] [--epochs 8] [field=value …]

The supernets have the channels of the table's networks, and see other synthetic people. The cells are derived at the
cost of the published ones, then trained and scored as those of the table. One search runs on each core; the epochs of
the second order, which takes longer, are fewer, so that all take about the same time. After an interruption the same
command does only what is missing. Writes results.txt, results.json and searches.png to --out.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: import modules from the project folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np

from benchmarks.experiments.cell_spread import draw_scores
from benchmarks.experiments.cell_table import Table, random_scores, rank, read_table, table_settings, train_like_table
from benchmarks.experiments.cells import PUBLISHED
from benchmarks.experiments.commands import ROOT, command
from benchmarks.experiments.equal_cost import read_search
from benchmarks.experiments.kept_runs import finish_all
from benchmarks.experiments.search_runs import SearchRun
from config import CommandParser
from utils.datasets.face_dataset import FaceDataset
from utils.errors import UserError, run_cli
from utils.filesystem import save_figure

FACES = ROOT / "data/faces_searches"
PEOPLE = ["--people", "200", "--shots", "20", "--test-people", "2", "--pairs", "20", "--seed", "1"]
# As NAS/config.py, for fewer and smaller steps: with its learning rates neither weights nor alphas would move. The
# supernet has fewer cells than the derived networks, as in DARTS.
SEARCH = ["n_layers=4", "batch_size=16", "lr=1.6", "alpha_lr=0.01", "search_eval=400", "log_step=25"]
# Config fields, and the part of --epochs, by which a second-order search takes the time of a first-order one.
KINDS: dict[str, tuple[list[str], float]] = {
    "first-order": (["second_order=False"], 1),
    "second-order": (["second_order=True"], 0.4),
    "beta-decay": (["second_order=False", "beta_decay=50"], 1),
}
Ranked = dict[str, list[dict[str, Any]]]  # the rows of the cells that each kind of search found, one per seed


def search_run(kind: str, seed: int, args: argparse.Namespace, table: Table) -> SearchRun:
    """Returns the run of a search."""
    settings = table_settings(table)
    fields, part = KINDS[kind]
    size = [f"channel={settings.channel}", f"embedding_size={settings.embedding_size}"]
    length = f"num_epoch={max(1, round(part * args.epochs))}"
    arguments = [f"rec={FACES}", *size, *SEARCH, length, *fields, *args.changes, f"seed={seed}"]
    return SearchRun(args.out / f"{kind}-{seed}", arguments, FaceDataset(FACES).fingerprint)


def rank_all(runs: dict[str, list[SearchRun]], args: argparse.Namespace, table: Table) -> Ranked:
    """Trains the cells of all searches as those of the table; returns a row for each, by kind of search."""
    tolerance, size = table["drawn"]["tolerance"], table_settings(table).size
    found = [read_search(run.folder, PUBLISHED, tolerance, size) for each in runs.values() for run in each]
    genotypes, origins = zip(*found, strict=True)
    rows = train_like_table(genotypes, table, args.out / "cells", args.parallel, 1)
    both = iter(zip(rows, origins, strict=True))
    ranked: Ranked = {}
    for name, each in runs.items():
        for run, (row, origin) in zip(each, both, strict=False):
            searched = {"minutes": run.minutes(), "skips": run.last_epoch()["skips"], "origin": origin}
            ranked.setdefault(name, []).append(row | searched | {"percentile": rank(row, table, "eer")})
    return ranked


def format_searches(ranked: Ranked, table: Table) -> str:
    """Returns a row for each kind of search: minutes, EER and percentile in the mean, and the percentile by seed."""
    lines = [f"{'':<14}{'minutes':>9}{'EER %':>8}{'percentile':>12}   of each seed"]
    for name, rows in ranked.items():
        minutes = float(np.mean([row["minutes"] for row in rows]))
        percentiles = [row["percentile"] for row in rows]
        eer, of_seeds = np.mean(mean_eers(rows)), "  ".join(f"{value:.0f}" for value in percentiles)
        lines.append(f"{name:<14}{minutes:>9.0f}{eer:>8.2f}{np.mean(percentiles):>12.0f}   {of_seeds}")
    published, random = table["published"], mean_eers(table["random"].values())
    lines.append(f"{'published':<14}{'':>9}{mean_eers([published])[0]:>8.2f}{rank(published, table, 'eer'):>12.0f}")
    lines.append(f"{'random, mean':<14}{'':>9}{np.mean(random):>8.2f}")
    return "\n".join(lines)


def mean_eers(rows: Iterable[dict[str, Any]]) -> list[float]:
    """Returns the EER of each cell in %, the mean over the seeds of its trainings."""
    return [float(np.mean(row["scores"]["eer"])) for row in rows]


def write_results(out: Path, ranked: Ranked, table: Table) -> None:
    """Writes results.json, results.txt and searches.png."""
    (out / "results.json").write_text(json.dumps(ranked, indent=1) + "\n")
    (out / "results.txt").write_text(format_searches(ranked, table) + "\n")
    lines = {"published": [table["published"]], **ranked}
    eers = {name: mean_eers(rows) for name, rows in lines.items()}
    figure = draw_scores([*table["random"]], random_scores(table, "eer"), eers, "EER in %")
    save_figure(out / "searches.png", figure, dpi=100)


def parse() -> argparse.Namespace:
    """Parses and checks the command line."""
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="searches of each kind (%(default)s)")
    parser.add_argument("--epochs", type=int, default=8, help="epochs of a first-order search (%(default)s)")
    parser.add_argument("--only", default=",".join(KINDS), help="kinds of searches (%(default)s)")
    parser.add_argument("--table", type=Path, default=ROOT / "benchmarks/cells.json", help="random cells (%(default)s)")
    parser.add_argument("--parallel", type=int, default=os.cpu_count() or 1, help="runs at a time (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("output/searches"), help="folder of all runs (%(default)s)")
    parser.add_argument("changes", nargs="*", metavar="field=value", help="config field of every search")
    args = parser.parse()
    for name in ("seeds", "epochs", "parallel"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} {getattr(args, name)}: should be at least 1")
    if unknown := [name for name in args.only.split(",") if name not in KINDS]:
        raise UserError(f"--only {unknown[0]}: no such search", fix=f"there are {', '.join(KINDS)}")
    if "beta-decay" in args.only.split(",") and args.epochs < 2:
        raise UserError("--epochs 1: Beta-decay begins with the second epoch", fix="leave it out with --only")
    return args


def main() -> None:
    """Runs the experiment and prints its table."""
    args, start, cores = parse(), time.perf_counter(), os.cpu_count() or 1
    table, kinds = read_table(args.table), args.only.split(",")
    args.out = args.out.absolute()
    command(["data/make_demo_faces.py", "--out", str(FACES), *PEOPLE], cores)
    runs = {name: [search_run(name, seed, args, table) for seed in range(args.seeds)] for name in kinds}
    finish_all([runs[name][seed] for seed in range(args.seeds) for name in kinds], args.parallel)
    ranked = rank_all(runs, args, table)
    write_results(args.out, ranked, table)
    minutes = (time.perf_counter() - start) / 60
    print(f"\n{format_searches(ranked, table)}\n\n{minutes:.1f} minutes, {cores} cores; all in {args.out}")
    print("Small searches: python -m utils.doctor --search says what one on CASIA-WebFace costs on this machine.")


if __name__ == "__main__":
    run_cli(main)
