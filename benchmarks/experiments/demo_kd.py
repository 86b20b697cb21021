"""Does a teacher help? One teacher, then a student trained plain, by template and by multi-step distillation.

    python benchmarks/experiments/demo_kd.py [--seeds 3] [--out output/demo_kd] [field=value …]

Every run is a command of this project, with its log in its folder. Runs share the cores, one or more threads each.
Interrupted, it goes on with the runs that are missing. Leaves results.txt and results.json in --out.
"""

import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a script: the modules are found from the project's folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from benchmarks.experiments.runs import Run, finish
from config import CommandParser
from utils.errors import UserError, run_cli

STUDENT = "config/config_demo_kd.py"
# The teacher is the net of make demo, trained for as many epochs as the student: so each has its own of them.
TEACHER = ["--config", "config/config_demo.py", "num_epoch=4", "lr_steps=3", "save_initial=0"]
WAYS = {"plain": ["train.py"], "template": ["train_kd.py"], "multi-step": ["train_kd.py", "--multi-step"]}


def students(out: Path, seeds: int, changes: Sequence[str]) -> dict[str, list[Run]]:
    """The runs of each way of training."""
    net = ["--config", STUDENT, *changes]
    teacher = [f"teacher_pth={out / 'teacher'}", f"teacher_cache={out / 'cache'}"]
    runs = {}
    for way, script in WAYS.items():
        command = [*script, *net, *teacher]
        folders = [out / f"{way}-{seed}" for seed in range(seeds)]
        runs[way] = [Run(folder, [*command, f"seed={seed}"], net) for seed, folder in enumerate(folders)]
    return runs


def table(teacher: Run, runs: dict[str, list[Run]]) -> str:
    """Mean and spread of each way, and its gain over plain training of the same seed."""
    plain = [run_cli.accuracy() for run_cli in runs["plain"]]
    lines = [f"{'':<12}{'accuracy':>16}{'gain over plain':>18}   of each seed"]
    for way, of_way in runs.items():
        accuracies = [run_cli.accuracy() for run_cli in of_way]
        gains = [accuracy - other for accuracy, other in zip(accuracies, plain, strict=True)]
        gain = "" if way == "plain" else _mean_and_spread(gains, "+.2f")
        each = "  ".join(f"{accuracy:.2f}" for accuracy in accuracies)
        lines.append(f"{way:<12}{_mean_and_spread(accuracies, '.2f'):>16}{gain:>18}   {each}")
    lines.append(f"{'(teacher)':<12}{teacher.accuracy():>8.2f}")
    return "\n".join(lines)


def _mean_and_spread(values: Sequence[float], form: str) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):{form}} ± {spread:.2f}"


def main() -> None:
    """The command line."""
    parser = CommandParser(__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3, help="runs of each way (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("output/demo_kd"), help="folder of all runs (%(default)s)")
    parser.add_argument("changes", nargs="*", metavar="field=value", help="a change of every student's config")
    args = parser.parse()
    if args.seeds < 1:
        raise UserError(f"--seeds {args.seeds}: should be at least 1")
    started = time.perf_counter()
    out = args.out.absolute()
    teacher = Run(out / "teacher", ["train.py", *TEACHER], TEACHER)
    runs = students(out, args.seeds, args.changes)
    finish([teacher, *runs["plain"]], out)  # those that need no teacher go beside its own training
    finish([run_cli for way in ("template", "multi-step") for run_cli in runs[way]], out)
    results = {way: [run_cli.results() for run_cli in of_way] for way, of_way in runs.items()}
    (out / "results.json").write_text(json.dumps({"teacher": teacher.results(), **results}, indent=1) + "\n")
    (out / "results.txt").write_text(table(teacher, runs) + "\n")
    print(f"\n{table(teacher, runs)}\n\n{time.perf_counter() - started:.0f} s, {os.cpu_count()} cores; all in {out}")


if __name__ == "__main__":
    run_cli(main)
