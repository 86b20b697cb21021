"""A search on drawn faces, and is what it finds any good? Beside it the published cells, and cells drawn at random.

    python benchmarks/experiments/demo_search.py [--out output/demo_search] [--seed 0] [field=value …]

Searches for 3 epochs on 60 of the people, derives, and trains the derived network, the published genotype and two
random ones on all 200: the same steps, and channels chosen so that multiply-adds are as near as can be. Every part is a
command of this project. Interrupted, it goes on with what is missing. Leaves results.txt in --out.
"""

import os
import shutil
import sys
import time
from collections.abc import Iterable
from pathlib import Path

if not __package__:  # run as a script: the modules are found from the project's folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np

from backbones.augment_cnn import AugmentCNN
from backbones.genotypes import SOFTMAX_CASIA, Genotype, Node, parse, to_text
from benchmarks.experiments.runs import ROOT, Run, command, finish
from config import CommandParser
from NAS.derive import found_genotype
from NAS.search import CONFIG
from NAS.supernet import NONE, PRIMITIVES
from utils.errors import UserError, run_cli
from utils.flops import count

FACES = "data/faces_search"
TRAINED_ON = "data/faces_demo"
PEOPLE = ["--people", "60", "--shots", "8", "--test-people", "4", "--pairs", "20"]
# Steps are few: the alphas are given a rate at which they move in them.
SEARCH = [
    f"rec={FACES}", "channel=4", "n_layers=4", "num_epoch=3", "batch_size=16", "alpha_lr=0.03", "log_step=5",
    "search_eval=120",
]  # fmt: skip
CELLS, CHANNEL, EMBEDDING = 6, 8, 128  # of the derived network
TRAINING = [
    "val_targets=demo", "s=32", "m=0.3", "batch_size=32", "lr=0.8", "num_epoch=2", "lr_steps=1", "eval_step=0",
]  # fmt: skip


def random_genotype(rng: np.random.Generator, n_nodes: int) -> Genotype:
    """Two different states and any operation but `none` for every node."""

    def cell() -> list[Node]:
        return [
            [
                (PRIMITIVES[int(operation)], int(state))
                for operation, state in zip(rng.integers(0, NONE, 2), rng.choice(2 + n, 2, replace=False), strict=True)
            ]
            for n in range(n_nodes)
        ]

    states = list(range(2, 2 + n_nodes))
    return Genotype(cell(), states, cell(), states)


def cost(genotype: Genotype, channel: int) -> float:
    """Millions of multiply-adds."""
    return count(AugmentCNN(channel, CELLS, genotype, emb=EMBEDDING)).multiply_adds / 1e6


def at_cost(genotype: Genotype, wanted: float) -> int:
    """The channels whose cost is nearest to the wanted one."""
    return min(range(4, 17), key=lambda channel: abs(np.log(cost(genotype, channel) / wanted)))


def contestants(found: Genotype, seed: int) -> dict[str, tuple[Genotype, int]]:
    """Each network's genotype and channels; random ones are redrawn until their cost is within a tenth."""
    wanted = cost(found, CHANNEL)
    published = parse(SOFTMAX_CASIA)
    chosen = {"found": (found, CHANNEL), "published": (published, at_cost(published, wanted))}
    rng = np.random.default_rng(seed)
    while len(chosen) < 4:
        drawn = random_genotype(rng, len(found.normal))
        channel = at_cost(drawn, wanted)
        if abs(cost(drawn, channel) / wanted - 1) < 0.1:
            chosen[f"random{len(chosen) - 1}"] = drawn, channel
    return chosen


def train_run(out: Path, name: str, genotype: Genotype, channel: int, seed: int, threads: int) -> Run:
    """The training of one of them, by a config that NAS/derive.py writes."""
    config = f"demo_search_{name}"
    sizes = ["--channel", str(channel), "--n-layers", str(CELLS), "--embedding-size", str(EMBEDDING)]
    derive = ["NAS/derive.py", "--name", config, "--genotype", to_text(genotype), "--rec", TRAINED_ON, "--force"]
    command([*derive, *sizes], threads)
    net = ["--config", f"config/config_{config}.py", *TRAINING]
    return Run(out / name, ["train.py", *net, f"seed={seed}", "log_step=25"], net)


def table(chosen: dict[str, tuple[Genotype, int]], runs: dict[str, Run]) -> str:
    """Accuracy on people never seen, with its 95 % interval; parameters and multiply-adds."""
    lines = [f"{'':<12}{'accuracy':>10}{'95 % interval':>18}{'channels':>10}{'parameters':>12}{'M multiply-adds':>17}"]
    for name, (genotype, channel) in chosen.items():
        results = runs[name].results()
        (score,) = results[max(results, key=int)].values()
        low, high = score["interval"]
        cells = count(AugmentCNN(channel, CELLS, genotype, emb=EMBEDDING))
        lines.append(
            f"{name:<12}{100 * score['accuracy']:>10.2f}{f'{100 * low:.2f} to {100 * high:.2f}':>18}{channel:>10}"
            f"{cells.parameters:>12,}{cells.multiply_adds / 1e6:>17.2f}"
        )
    return "\n".join(lines)


def search(out: Path, changes: Iterable[str], seed: int, threads: int) -> Genotype:
    """The genotype of the last epoch, searched for unless it stands there."""
    folder = out / "search"
    texts = [path.read_text() for path in (CONFIG, ROOT / FACES / "made.json")]
    made_of = "\n".join([*SEARCH, *changes, str(seed), *texts])
    if not (folder / "made_of.txt").is_file() or (folder / "made_of.txt").read_text() != made_of:
        shutil.rmtree(folder, ignore_errors=True)  # of another search, or interrupted
        print("searching", flush=True)
        places = [f"output={folder}", f"log_dir={out / 'logs'}", f"seed={seed}", "workers=1"]
        command(["NAS/search.py", *SEARCH, *changes, *places], threads)
        (folder / "made_of.txt").write_text(made_of)
    return found_genotype(folder, None)[0]


def main() -> None:
    """The command line."""
    parser = CommandParser(__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("output/demo_search"), help="folder of all runs (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of everything (%(default)s)")
    parser.add_argument("changes", nargs="*", metavar="field=value", help="a change of the search's config")
    args = parser.parse()
    if args.seed < 0:
        raise UserError(f"--seed {args.seed}: should be at least 0")
    started = time.perf_counter()
    out, threads = args.out.absolute(), os.cpu_count() or 1
    command(["data/make_demo_faces.py", "--out", TRAINED_ON], threads)
    command(["data/make_demo_faces.py", "--out", FACES, *PEOPLE], threads)
    found = search(out, args.changes, args.seed, threads)
    searched = time.perf_counter()
    print(f"found {to_text(found)} in {searched - started:.0f} s", flush=True)
    chosen = contestants(found, args.seed)
    runs = {name: train_run(out, name, *which, args.seed, threads) for name, which in chosen.items()}
    finish(list(runs.values()), out)
    (out / "results.txt").write_text(table(chosen, runs) + "\n")
    minutes = (time.perf_counter() - started) / 60
    print(f"\n{table(chosen, runs)}\n\n{minutes:.1f} minutes, {threads} cores; all in {out}")


if __name__ == "__main__":
    run_cli(main)
