"""Measures how much random cells differ at equal multiply-adds, against what the seed changes; ranks cells among them.

    python -m benchmarks.experiments.cells [--cells 16] [--seeds 2] [--table benchmarks/cells.json] [field=value …]
    python -m benchmarks.experiments.cells --rank GENOTYPE|FILE|SEARCH_FOLDER … [--table benchmarks/cells.json]

The first form draws random cells whose network has the multiply-adds of the published cells. It trains each with every
seed on synthetic faces, scores it on pairs of other people, and writes the table as data. The second form trains given
cells, or those that a search found last, with the settings of the table, and says their percentile among its random
cells. Every run is a command of this project and writes its log to its folder; one runs on each core. After an
interruption the same command does only what is missing.
"""

import json
import os
import sys
import time
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path

if not __package__:  # run as a script: import modules from the project folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np

from backbones.genotypes import SOFTMAX_CASIA, Genotype, parse_genotype
from benchmarks.experiments.cell_runs import MEASURES, Settings, train_cells
from benchmarks.experiments.cell_spread import draw_scores, measure_spread
from benchmarks.experiments.cell_table import (
    Table,
    format_rank,
    format_table,
    random_scores,
    read_table,
    table_settings,
    train_like_table,
)
from benchmarks.experiments.commands import ROOT
from benchmarks.experiments.equal_cost import read_search
from benchmarks.experiments.random_cells import draw_at_equal_cost
from config import CommandParser, load_config
from NAS.search import DEFAULT_CONFIG
from utils.errors import UserError, run_cli, shorten
from utils.filesystem import save_figure

PUBLISHED = parse_genotype(SOFTMAX_CASIA)


def measure(args: Namespace, settings: Settings) -> Table:
    """Draws and trains the random cells and the published ones; returns the table."""
    n_nodes, space = len(PUBLISHED.normal), load_config(DEFAULT_CONFIG, []).search_space
    genotypes, draws = draw_at_equal_cost(args.cells, PUBLISHED, args.tolerance, settings.size, space, args.draw_seed)
    print(f"{args.cells} cells of {n_nodes} nodes within {100 * args.tolerance:g} %, of {draws} drawn", flush=True)
    cells = {f"random{i:02d}": genotype for i, genotype in enumerate(genotypes)} | {"published": PUBLISHED}
    by_name = train_cells(cells, args.out, settings, args.seeds, args.parallel, args.threads)
    published = by_name.pop("published")
    return {
        "settings": asdict(settings) | {"changes": [*settings.changes]},
        "drawn": {"seed": args.draw_seed, "tolerance": args.tolerance, "draws": draws, "search_space": space},
        "seeds": args.seeds,
        "spread": {name: measure_spread(random_scores({"random": by_name}, name)).to_dict() for name in MEASURES},
        "published": published,
        "random": by_name,
    }


def read_cells(argument: str, tolerance: float, settings: Settings) -> tuple[Genotype, str]:
    """Returns the genotype given as text, as a file of it, or as the output folder of a search; and its origin.

    The cells of a search are derived at the cost of the published ones, see `read_search`. Raises UserError.
    """
    path = Path(argument)
    if "(" in argument or "{" in argument:
        return parse_genotype(argument), "as given"
    if path.is_dir():
        return read_search(path, PUBLISHED, tolerance, settings.size)
    try:
        return parse_genotype(path.read_text()), "as given"
    except (OSError, ValueError) as error:
        raise UserError(f"--rank {argument}: neither a genotype, nor a file of one, nor a folder ({error})") from None


def rank(args: Namespace) -> None:
    """Trains the cells of --rank with the settings of the table, and prints their percentiles."""
    table = read_table(args.table)
    settings = table_settings(table)
    cells = [read_cells(text, table["drawn"]["tolerance"], settings) for text in args.rank]
    rows = train_like_table([genotype for genotype, _ in cells], table, args.out, args.parallel, args.threads)
    count = len(table["random"])
    print(f"\nIn brackets the percentile among {count} random cells, mean of {table['seeds']} seeds each:")
    for text, (_, origin), row in zip(args.rank, cells, rows, strict=True):
        print(f"{shorten(text, quote=False)} ({origin}):\n{format_rank(row, table)}")
    (args.out / "ranks.json").write_text(json.dumps(rows, indent=1) + "\n")


def parse() -> Namespace:
    """Parses and checks the command line."""
    cores, default = os.cpu_count() or 1, Settings()
    parser = CommandParser(__doc__.split("\n")[0])
    parser.add_argument("--rank", nargs="+", metavar="CELLS", help="genotypes or search folders, to rank in the table")
    parser.add_argument("--table", type=Path, default=ROOT / "benchmarks/cells.json", help="the table (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("output/cells"), help="folder of all runs (%(default)s)")
    parser.add_argument("--cells", type=int, default=16, help="random cells (%(default)s)")
    parser.add_argument("--seeds", type=int, default=2, help="runs of each (%(default)s)")
    parser.add_argument("--draw-seed", type=int, default=0, help="random seed of the cells (%(default)s)")
    parser.add_argument("--tolerance", type=float, default=0.03, help="of multiply-adds, relative (%(default)s)")
    parser.add_argument("--images", type=int, default=default.images, help="images to train on (%(default)s)")
    parser.add_argument("--nuisance", type=float, default=default.nuisance, help="as in data/make_demo_faces.py")
    parser.add_argument("--channel", type=int, default=default.channel, help="channels (%(default)s)")
    parser.add_argument("--layers", type=int, default=default.n_layers, help="cells of a network (%(default)s)")
    parser.add_argument("--steps", type=int, default=default.steps, help="steps of each training (%(default)s)")
    parser.add_argument("--lr", type=float, default=default.lr, help="learning rate, as in a config (%(default)s)")
    parser.add_argument("--parallel", type=int, default=cores, help="runs at a time (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="threads of a run (%(default)s)")
    parser.add_argument("changes", nargs="*", metavar="field=value", help="config field of every training")
    args = parser.parse()
    for name, least in (("cells", 2), ("seeds", 2), ("draw_seed", 0), ("parallel", 1), ("threads", 1)):
        if getattr(args, name) < least:
            raise UserError(f"--{name.replace('_', '-')} {getattr(args, name)}: should be at least {least}")
    return args


def main() -> None:
    """Runs the command."""
    args, start = parse(), time.perf_counter()
    if args.rank:
        rank(args)
        return
    settings = Settings(
        images=args.images,
        nuisance=args.nuisance,
        channel=args.channel,
        n_layers=args.layers,
        steps=args.steps,
        lr=args.lr,
        changes=tuple(args.changes),
    )
    settings.check()
    table = measure(args, settings)
    args.table.write_text(json.dumps(table, indent=1) + "\n")
    (args.out / "results.txt").write_text(format_table(table) + "\n")
    published = {"published cells": [float(np.mean(table["published"]["scores"]["eer"]))]}
    figure = draw_scores([*table["random"]], random_scores(table, "eer"), published, "EER in %")
    save_figure(args.out / "cells.png", figure, dpi=100)
    minutes = (time.perf_counter() - start) / 60
    ranked = format_rank(table["published"], table)
    print(f"\n{format_table(table)}\n\nPublished cells, in brackets their percentile among the random ones:\n{ranked}")
    print(f"\n{minutes:.1f} minutes; the table: {args.table}; all else in {args.out}")


if __name__ == "__main__":
    run_cli(main)
