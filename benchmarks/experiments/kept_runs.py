"""Training runs whose result is kept as JSON: a finished run is not repeated, an interrupted one resumes."""

import json
import os
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.experiments.runs import command

RESULT, STARTED = "result.json", "started.json"


@dataclass(frozen=True)
class KeptRun:
    """Training run and the score of its last checkpoint on one verification set."""

    folder: Path
    training: list[str]  # training script and its arguments
    last_step: int
    scored_on: tuple[Path, str]  # folder of the verification set, and its name
    data: str  # fingerprint of the training images

    def recipe(self) -> dict[str, Any]:
        """Returns all that the result depends on; a run with another recipe is repeated."""
        scored_on = [str(part) for part in self.scored_on]
        return {"training": self.training, "step": self.last_step, "scored_on": scored_on, "data": self.data}

    def result(self) -> dict[str, Any] | None:
        """Returns the kept result of this recipe, or None."""
        kept = _read(self.folder / RESULT)
        return kept if kept and kept["recipe"] == self.recipe() else None

    def accuracy(self) -> float:
        """Returns the accuracy in %. The run has to be finished."""
        result = self.result()
        assert result
        return result["accuracy"]

    def finish(self, threads: int) -> None:
        """Trains, scores and keeps the result, unless it is kept already. Raises UserError if a command fails."""
        if self.result():
            return
        started = {"recipe": self.recipe()}
        if _read(self.folder / STARTED) != started:  # other files there are of another recipe
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            (self.folder / STARTED).write_text(json.dumps(started, indent=1) + "\n")
        start = time.perf_counter()
        print(f"{self.folder.name}: training", flush=True)
        output = f"output={self.folder}"
        command([*self.training, output, f"log_dir={self.folder / 'logs'}", "workers=1"], threads)
        sets, name = self.scored_on
        scoring = [f"rec={sets}", f"val_targets={name}", f"test_output={self.folder}", "workers=1"]
        command(["eval/eval.py", output, "--steps", str(self.last_step), *scoring], threads)
        score = json.loads((self.folder / "results.json").read_text())[str(self.last_step)][name]
        kept = started | {"accuracy": 100 * score["accuracy"], "seconds": round(time.perf_counter() - start)}
        temporary = self.folder / f".{RESULT}"
        temporary.write_text(json.dumps(kept, indent=1) + "\n")
        temporary.replace(self.folder / RESULT)
        print(f"{self.folder.name}: {kept['accuracy']:.2f} % in {kept['seconds']} s", flush=True)


def finish_all(runs: Sequence[KeptRun], parallel: int) -> None:
    """Finishes the runs, so many at once; the cores are divided among them."""
    missing = [run for run in runs if not run.result()]
    parallel = max(1, min(parallel, len(missing)))
    threads = max(1, (os.cpu_count() or 1) // parallel)
    with ThreadPoolExecutor(parallel) as pool:
        for future in [pool.submit(run.finish, threads) for run in missing]:
            future.result()


def _read(path: Path) -> dict[str, Any] | None:
    """Returns the content of a JSON file, or None if there is none or it was cut short."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None
