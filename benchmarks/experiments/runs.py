"""Training runs to compare: each runs commands of this project, several at once, with a folder of its own."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Run:
    """Training run and its evaluation."""

    folder: Path
    training: list[str]  # training script and its arguments
    network_arguments: list[str]  # arguments that name the network for eval.py

    def recipe(self) -> str:
        """Returns all that the results depend on, as text; a run with another recipe is repeated."""
        files = [ROOT / "data/faces_demo/made.json", ROOT / self.training[self.training.index("--config") + 1]]
        return "\n".join([*self.training, *(path.read_text() for path in files)])

    def is_done(self) -> bool:
        """Returns whether the folder holds the results of this recipe."""
        path = self.folder / "made_of.txt"
        return path.is_file() and path.read_text() == self.recipe()

    def results(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Returns the current scores: step -> evaluation set -> score."""
        results = json.loads((self.folder / "results.json").read_text())
        # Scores of an earlier run stay in the file, marked as outdated.
        current = {
            step: {name: score for name, score in sets.items() if "outdated" not in score}
            for step, sets in results.items()
        }
        return {step: sets for step, sets in current.items() if sets}

    def accuracy(self) -> float:
        """Returns the accuracy of the last checkpoint in %."""
        results = self.results()
        (score,) = results[max(results, key=int)].values()
        return 100 * score["accuracy"]


def finish(runs: Sequence[Run], out: Path) -> None:
    """Trains and evaluates the runs that are not done, several at once; the cores are divided among them."""
    cores = os.cpu_count() or 1
    missing = [run for run in runs if not run.is_done()]
    with ThreadPoolExecutor(max(1, min(cores, len(missing)))) as pool:
        threads = max(1, cores // max(1, min(cores, len(missing))))
        for future in [pool.submit(_train_and_evaluate, run, out, threads) for run in missing]:
            future.result()


def _train_and_evaluate(run: Run, out: Path, threads: int) -> None:
    """Replaces the run's folder by a new training and its evaluation. Raises UserError if a command fails."""
    start = time.perf_counter()
    shutil.rmtree(run.folder, ignore_errors=True)
    folders = [f"output={run.folder}", f"log_dir={out / 'logs'}"]
    print(f"{run.folder.name}: training", flush=True)
    command([*run.training, *folders, "workers=1"], threads)
    command(["eval/eval.py", *run.network_arguments, *folders], threads)
    (run.folder / "made_of.txt").write_text(run.recipe())
    print(f"{run.folder.name}: {run.accuracy():.2f} % in {time.perf_counter() - start:.0f} s", flush=True)


def command(arguments: Sequence[str], threads: int) -> None:
    """Runs a script of the project. Raises UserError with the last line of its errors if it fails."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise UserError(f"{' '.join(arguments)}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")
