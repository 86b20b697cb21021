"""Compares a student trained without a teacher, and by template and multi-step knowledge distillation.

    python benchmarks/experiments/demo_kd.py [--seeds 3] [--out output/demo_kd] [field=value …]

Every run is a command of this project and writes its log to its folder. Runs share the cores, each with at least one
thread. After an interruption the same command does only the missing runs. Writes results.txt and results.json to --out.
"""

import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a script: import modules from the project folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from benchmarks.experiments.runs import Run, finish
from config import CommandParser
from utils.errors import UserError, run_cli

STUDENT = "config/config_demo_kd.py"
# The teacher is the network of make demo, trained for as many epochs as the student, one checkpoint for each.
TEACHER = ["--config", "config/config_demo.py", "num_epoch=4", "lr_steps=3", "save_initial=0"]
METHODS = {"plain": ["train.py"], "template": ["train_kd.py"], "multi-step": ["train_kd.py", "--multi-step"]}


def students(out: Path, seeds: int, changes: Sequence[str]) -> dict[str, list[Run]]:
    """Returns the runs of each training method, one per seed."""
    network = ["--config", STUDENT, *changes]
    teacher = [f"teacher_pth={out / 'teacher'}", f"teacher_cache={out / 'cache'}"]
    runs = {}
    for method, script in METHODS.items():
        command = [*script, *network, *teacher]
        folders = [out / f"{method}-{seed}" for seed in range(seeds)]
        runs[method] = [Run(folder, [*command, f"seed={seed}"], network) for seed, folder in enumerate(folders)]
    return runs


def table(teacher: Run, runs: dict[str, list[Run]]) -> str:
    """Returns accuracy of each method, mean ± standard deviation, and its gain over plain training of the same seed."""
    plain = [run.accuracy() for run in runs["plain"]]
    lines = [f"{'':<12}{'accuracy':>16}{'gain over plain':>18}   by seed"]
    for method, method_runs in runs.items():
        accuracies = [run.accuracy() for run in method_runs]
        gains = [accuracy - baseline for accuracy, baseline in zip(accuracies, plain, strict=True)]
        gain = "" if method == "plain" else _mean_and_spread(gains, "+.2f")
        by_seed = "  ".join(f"{accuracy:.2f}" for accuracy in accuracies)
        lines.append(f"{method:<12}{_mean_and_spread(accuracies, '.2f'):>16}{gain:>18}   {by_seed}")
    lines.append(f"{'(teacher)':<12}{teacher.accuracy():>8.2f}")
    return "\n".join(lines)


def _mean_and_spread(values: Sequence[float], format_spec: str) -> str:
    """Returns "mean ± standard deviation"."""
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):{format_spec}} ± {spread:.2f}"


def main() -> None:
    """Runs the experiment and prints its table."""
    parser = CommandParser(__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3, help="runs of each method (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("output/demo_kd"), help="folder of all runs (%(default)s)")
    parser.add_argument("changes", nargs="*", metavar="field=value", help="config field of every student")
    args = parser.parse()
    if args.seeds < 1:
        raise UserError(f"--seeds {args.seeds}: should be at least 1")
    start = time.perf_counter()
    out = args.out.absolute()
    teacher = Run(out / "teacher", ["train.py", *TEACHER], TEACHER)
    runs = students(out, args.seeds, args.changes)
    finish([teacher, *runs["plain"]], out)  # these need no teacher and train at the same time
    finish([run for method in ("template", "multi-step") for run in runs[method]], out)
    results = {method: [run.results() for run in method_runs] for method, method_runs in runs.items()}
    (out / "results.json").write_text(json.dumps({"teacher": teacher.results(), **results}, indent=1) + "\n")
    (out / "results.txt").write_text(table(teacher, runs) + "\n")
    print(f"\n{table(teacher, runs)}\n\n{time.perf_counter() - start:.0f} s, {os.cpu_count()} cores; all in {out}")


if __name__ == "__main__":
    run_cli(main)
