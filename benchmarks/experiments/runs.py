"""Trainings that are compared: each a command of this project, with its log in its folder, several at once."""

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

    def results(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Step -> set -> score."""
        found = json.loads((self.folder / "results.json").read_text())
        # What an earlier run left stays there, marked.
        current = {
            step: {name: one for name, one in sets.items() if "outdated" not in one} for step, sets in found.items()
        }
        return {step: sets for step, sets in current.items() if sets}

    def accuracy(self) -> float:
        """Of the last checkpoint, in %."""
        results = self.results()
        (score,) = results[max(results, key=int)].values()
        return 100 * score["accuracy"]


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
    command([*run.training, *places, "workers=1"], threads)
    command(["eval/eval.py", *run.net, *places], threads)
    (run.folder / "made_of.txt").write_text(run.made_of())
    print(f"{run.folder.name}: {run.accuracy():.2f} % in {time.perf_counter() - started:.0f} s", flush=True)


def command(arguments: Sequence[str], threads: int) -> None:
    """Runs a script of the project. Raises UserError with its last line where it fails."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise UserError(f"{' '.join(arguments)}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")
