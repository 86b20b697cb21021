"""Training runs whose result is kept as JSON: a finished run is not repeated, an interrupted one resumes."""

import json
import os
import shutil
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.filesystem import write_text_atomic

RESULT, STARTED = "result.json", "started.json"


class KeptRun:
    """Training run in a folder of its own. Subclasses say what it depends on, and train and score it."""

    folder: Path

    def inputs(self) -> dict[str, Any]:
        """Returns all that the result depends on, besides the code, as JSON has it."""
        raise NotImplementedError

    def train_and_score(self, threads: int) -> dict[str, float]:
        """Runs the commands, which go on where an interrupted run ended, and returns scores in % by name."""
        raise NotImplementedError

    def result(self) -> dict[str, Any] | None:
        """Returns {"inputs", "scores", "seconds"} if the run is finished and had these inputs, or None."""
        kept = _read(self.folder / RESULT)
        return kept if kept and kept.get("inputs") == self.inputs() else None

    def finish(self, threads: int) -> dict[str, Any]:
        """Trains, scores, and keeps and returns the result. Raises UserError if a command fails.

        Its seconds are those of all attempts, without those that were killed.
        """
        started = self._start()
        start = time.perf_counter()
        try:
            scores = self.train_and_score(threads)
        finally:
            started["seconds"] += round(time.perf_counter() - start, 1)
            write_text_atomic(self.folder / STARTED, json.dumps(started, indent=1) + "\n")
        kept = started | {"scores": scores}
        write_text_atomic(self.folder / RESULT, json.dumps(kept, indent=1) + "\n")
        return kept

    def _start(self) -> dict[str, Any]:
        """Returns the content of STARTED, after it has emptied the folder of a run of other inputs.

        Raises UserError if the folder has files, but none of a run that was started here.
        """
        started, inputs = _read(self.folder / STARTED), self.inputs()
        if started and started.get("inputs") == inputs:
            return started
        if self.folder.exists():
            if not started and any(self.folder.iterdir()):
                raise UserError(f"{self.folder}: was not made by this experiment", fix="choose another --out")
            shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True)
        started = {"inputs": inputs, "seconds": 0.0}
        write_text_atomic(self.folder / STARTED, json.dumps(started, indent=1) + "\n")
        return started


def finish_all(runs: Sequence[KeptRun], parallel: int, threads: int | None = None) -> list[dict[str, Any]]:
    """Finishes the runs that are not, `parallel` at a time, and returns the results of all.

    Prints each new one, with the time left. Raises the first error, after the runs that go on have ended.

    threads: of a run; None divides the cores among those that run at a time.
    """
    results = [run.result() for run in runs]
    missing = [i for i, result in enumerate(results) if result is None]
    if len(missing) < len(runs):
        print(f"{len(runs) - len(missing)} of {len(runs)} runs are done already", flush=True)
    parallel = max(1, min(parallel, len(missing)))
    each = threads or max(1, (os.cpu_count() or 1) // parallel)
    if missing:
        print(f"{len(missing)} runs, {parallel} at a time; logs: {runs[missing[0]].folder.parent}/*/*.log", flush=True)
    lock, start, done = threading.Lock(), time.perf_counter(), 0

    def finish_and_report(i: int) -> None:
        nonlocal done
        result = results[i] = runs[i].finish(each)
        with lock:
            done += 1
            left = (time.perf_counter() - start) / done * (len(missing) - done) / 60
            scores = "   ".join(f"{name} {value:.2f}" for name, value in result["scores"].items())
            print(f"{runs[i].folder.name:<20} {scores}   {result['seconds']:.0f} s; {left:.0f} min left", flush=True)

    with ThreadPoolExecutor(parallel) as pool:
        futures = [pool.submit(finish_and_report, i) for i in missing]
        try:
            for future in futures:
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return [result for result in results if result is not None]


def _read(path: Path) -> dict[str, Any] | None:
    """Returns the content of a JSON file, or None if there is none or it was cut short."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None
