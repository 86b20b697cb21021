"""Searches cells on synthetic faces, and compares the result with the published cells and with random cells.

    python benchmarks/experiments/demo_search.py [--out output/demo_search] [--seed 0] [field=value …]

It searches for 3 epochs on 60 of the people. Then it trains the derived network, the published genotype and two random
ones on all 200 people, for the same number of steps, with channels chosen for similar multiply-adds. Every part is a
command of this project. After an interruption the same command does only what is missing. Writes results.txt to --out.
"""

import os
import shutil
import sys
import time
from collections.abc import Iterable
from pathlib import Path

if not __package__:  # run as a script: import modules from the project folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np

from backbones.genotypes import SOFTMAX_CASIA, Genotype, parse_genotype, to_text
from benchmarks.experiments.random_cells import network_cost, random_genotype
from benchmarks.experiments.runs import ROOT, Run, command, finish
from config import CommandParser
from NAS.derive import read_genotype
from NAS.search import DEFAULT_CONFIG
from utils.errors import UserError, run_cli

FACES = "data/faces_search"
TRAINING_DATA = "data/faces_demo"
PEOPLE = ["--people", "60", "--shots", "8", "--test-people", "4", "--pairs", "20"]
# There are few steps, so the learning rate of the alphas is high.
SEARCH = [
    f"rec={FACES}", "channel=4", "n_layers=4", "num_epoch=3", "batch_size=16", "alpha_lr=0.03", "log_step=5",
    "search_eval=120",
]  # fmt: skip
CELLS, CHANNEL, EMBEDDING = 6, 8, 128  # of the derived network
TRAINING = [
    "val_targets=demo", "s=32", "m=0.3", "batch_size=32", "lr=0.8", "num_epoch=2", "lr_steps=1", "eval_step=0",
]  # fmt: skip


def cost(genotype: Genotype, channel: int) -> float:
    """Returns the millions of multiply-adds of the network with this genotype and number of channels."""
    return network_cost(genotype, channel, CELLS, EMBEDDING).multiply_adds / 1e6


def channel_for_cost(genotype: Genotype, target: float) -> int:
    """Returns the number of channels, from 4 to 16, whose cost is nearest to the target."""
    return min(range(4, 17), key=lambda channel: abs(np.log(cost(genotype, channel) / target)))


def select_networks(found: Genotype, seed: int) -> dict[str, tuple[Genotype, int]]:
    """Returns genotype and channels by network name; random ones are redrawn until their cost differs by below 10 %."""
    target = cost(found, CHANNEL)
    published = parse_genotype(SOFTMAX_CASIA)
    networks = {"found": (found, CHANNEL), "published": (published, channel_for_cost(published, target))}
    rng = np.random.default_rng(seed)
    while len(networks) < 4:
        genotype = random_genotype(rng, len(found.normal))
        channel = channel_for_cost(genotype, target)
        if abs(cost(genotype, channel) / target - 1) < 0.1:
            networks[f"random{len(networks) - 1}"] = genotype, channel
    return networks


def train_run(out: Path, name: str, genotype: Genotype, channel: int, seed: int, threads: int) -> Run:
    """Writes the network's config with NAS/derive.py and returns its training run."""
    config = f"demo_search_{name}"
    sizes = ["--channel", str(channel), "--n-layers", str(CELLS), "--embedding-size", str(EMBEDDING)]
    derive = ["NAS/derive.py", "--name", config, "--genotype", to_text(genotype), "--rec", TRAINING_DATA, "--force"]
    command([*derive, *sizes], threads)
    network = ["--config", f"config/config_{config}.py", *TRAINING]
    return Run(out / name, ["train.py", *network, f"seed={seed}", "log_step=25"], network)


def table(networks: dict[str, tuple[Genotype, int]], runs: dict[str, Run]) -> str:
    """Returns the accuracy on unseen people with its 95 % interval, and the size of each network."""
    lines = [f"{'':<12}{'accuracy':>10}{'95 % interval':>18}{'channels':>10}{'parameters':>12}{'M multiply-adds':>17}"]
    for name, (genotype, channel) in networks.items():
        results = runs[name].results()
        (score,) = results[max(results, key=int)].values()
        low, high = score["interval"]
        size = network_cost(genotype, channel, CELLS, EMBEDDING)
        lines.append(
            f"{name:<12}{100 * score['accuracy']:>10.2f}{f'{100 * low:.2f} to {100 * high:.2f}':>18}{channel:>10}"
            f"{size.parameters:>12,}{size.multiply_adds / 1e6:>17.2f}"
        )
    return "\n".join(lines)


def search(out: Path, changes: Iterable[str], seed: int, threads: int) -> Genotype:
    """Returns the genotype of the last epoch; runs the search unless the folder holds the result of the same one."""
    folder = out / "search"
    texts = [path.read_text() for path in (DEFAULT_CONFIG, ROOT / FACES / "made.json")]
    recipe = "\n".join([*SEARCH, *changes, str(seed), *texts])
    if not (folder / "made_of.txt").is_file() or (folder / "made_of.txt").read_text() != recipe:
        shutil.rmtree(folder, ignore_errors=True)  # left by another search, or by an interrupted one
        print("searching", flush=True)
        folders = [f"output={folder}", f"log_dir={out / 'logs'}", f"seed={seed}", "workers=1"]
        command(["NAS/search.py", *SEARCH, *changes, *folders], threads)
        (folder / "made_of.txt").write_text(recipe)
    return read_genotype(folder, None)[0]


def main() -> None:
    """Runs the experiment and prints its table."""
    parser = CommandParser(__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("output/demo_search"), help="folder of all runs (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="random seed (%(default)s)")
    parser.add_argument("changes", nargs="*", metavar="field=value", help="config field of the search")
    args = parser.parse()
    if args.seed < 0:
        raise UserError(f"--seed {args.seed}: should be at least 0")
    start = time.perf_counter()
    out, threads = args.out.absolute(), os.cpu_count() or 1
    command(["data/make_demo_faces.py", "--out", TRAINING_DATA], threads)
    command(["data/make_demo_faces.py", "--out", FACES, *PEOPLE], threads)
    found = search(out, args.changes, args.seed, threads)
    searched = time.perf_counter()
    print(f"found {to_text(found)} in {searched - start:.0f} s", flush=True)
    networks = select_networks(found, args.seed)
    runs = {
        name: train_run(out, name, genotype, channel, args.seed, threads)
        for name, (genotype, channel) in networks.items()
    }
    finish(list(runs.values()), out)
    (out / "results.txt").write_text(table(networks, runs) + "\n")
    minutes = (time.perf_counter() - start) / 60
    print(f"\n{table(networks, runs)}\n\n{minutes:.1f} minutes, {threads} cores; all in {out}")


if __name__ == "__main__":
    run_cli(main)
