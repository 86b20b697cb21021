"""Does a teacher help? One teacher, then a student trained plain, by template and by multi-step distillation.

    python benchmarks/demo_kd.py [--seeds 3] [--out output/demo_kd] [field=value …]

Every run is a command of this project, with its log in its folder. Runs share the cores, one or more threads each.
Interrupted, it goes on with the runs that are missing. Leaves results.txt and results.json in --out.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

if not __package__:  # run as a script: the modules are found from the project's folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from utils.errors import UserError, run

ROOT = Path(__file__).resolve().parents[1]
STUDENT = "config/config_demo_kd.py"
# The teacher is the net of make demo, trained for as many epochs as the student: so each has its own of them.
TEACHER = ["--config", "config/config_demo.py", "num_epoch=4", "lr_steps=3", "save_initial=0"]
WAYS = {"plain": ["train.py"], "template": ["train_kd.py"], "multi-step": ["train_kd.py", "--multi-step"]}


@dataclass(frozen=True)
class Run:
    """A training and its evaluation."""

    folder: Path
    training: list[str]  # script and arguments
    net: list[str]  # arguments by which eval.py knows the network

    def made_of(self) -> str:
        """What the results depend on: a run of something else is done anew."""
        files = [ROOT / "data/faces_demo/made.json", ROOT / self.training[self.training.index("--config") + 1]]
        return "\n".join([*self.training, *(path.read_text() for path in files)])

    def is_done(self) -> bool:
        """Whether its results stand there."""
        path = self.folder / "made_of.txt"
        return path.is_file() and path.read_text() == self.made_of()

    def results(self) -> dict[str, dict[str, dict[str, float]]]:
        """Step -> set -> score."""
        return json.loads((self.folder / "results.json").read_text())

    def accuracy(self) -> float:
        """Of the last checkpoint, in %."""
        results = self.results()
        (score,) = results[max(results, key=int)].values()
        return 100 * score["accuracy"]


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


def finish(runs: Sequence[Run], out: Path) -> None:
    """Does those that are not done, several at once."""
    cores = os.cpu_count() or 1
    missing = [run for run in runs if not run.is_done()]
    with ThreadPoolExecutor(max(1, min(cores, len(missing)))) as pool:
        threads = max(1, cores // max(1, min(cores, len(missing))))
        for done in [pool.submit(_finish, run, out, threads) for run in missing]:
            done.result()


def _finish(run: Run, out: Path, threads: int) -> None:
    started = time.perf_counter()
    shutil.rmtree(run.folder, ignore_errors=True)
    places = [f"output={run.folder}", f"log_dir={out / 'logs'}"]
    print(f"{run.folder.name}: training", flush=True)
    _command([*run.training, *places, "workers=1"], threads)
    _command(["eval/eval.py", *run.net, *places], threads)
    (run.folder / "made_of.txt").write_text(run.made_of())
    print(f"{run.folder.name}: {run.accuracy():.2f} % in {time.perf_counter() - started:.0f} s", flush=True)


def _command(arguments: Sequence[str], threads: int) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise UserError(f"{' '.join(arguments)}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")


def table(teacher: Run, runs: dict[str, list[Run]]) -> str:
    """Mean and spread of each way, and its gain over plain training of the same seed."""
    plain = [run.accuracy() for run in runs["plain"]]
    lines = [f"{'':<12}{'accuracy':>16}{'gain over plain':>18}   of each seed"]
    for way, of_way in runs.items():
        accuracies = [run.accuracy() for run in of_way]
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
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3, help="runs of each way (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("output/demo_kd"), help="folder of all runs (%(default)s)")
    parser.add_argument("changes", nargs="*", metavar="field=value", help="a change of every student's config")
    args = parser.parse_intermixed_args()
    if args.seeds < 1:
        raise UserError(f"--seeds {args.seeds}: should be at least 1")
    started = time.perf_counter()
    out = args.out.absolute()
    teacher = Run(out / "teacher", ["train.py", *TEACHER], TEACHER)
    runs = students(out, args.seeds, args.changes)
    finish([teacher, *runs["plain"]], out)  # those that need no teacher go beside its own training
    finish([run for way in ("template", "multi-step") for run in runs[way]], out)
    results = {way: [run.results() for run in of_way] for way, of_way in runs.items()}
    (out / "results.json").write_text(json.dumps({"teacher": teacher.results(), **results}, indent=1) + "\n")
    (out / "results.txt").write_text(table(teacher, runs) + "\n")
    print(f"\n{table(teacher, runs)}\n\n{time.perf_counter() - started:.0f} s, {os.cpu_count()} cores; all in {out}")


if __name__ == "__main__":
    run(main)
