"""Runs the stages one after another, each in a process of its own under a time limit, and goes on after a failure."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.gpu_check.processes import ROOT, start_group
from benchmarks.gpu_check.report import FAILED, LEFT_OUT, PASSED, Row, read_rows
from benchmarks.gpu_check.stages import Stage, missing_packages, needed_fallbacks
from utils.errors import shorten

SHORTEST = 5.0  # seconds; with less time left, a stage is left out


@dataclass
class Result:
    """Outcome of a stage."""

    stage: Stage
    outcome: str  # PASSED, FAILED or LEFT_OUT
    seconds: float = 0.0
    reason: str = ""  # why it failed as a whole or was left out
    rows: list[Row] = field(default_factory=list)


def run_stages(
    stages: Sequence[Stage], device: str, output: Path, seconds: float, save: Callable[[list[Result]], None]
) -> list[Result]:
    """Runs the stages and returns their results. Prints a line at the start and at the end of each.

    Args:
        stages: in their order.
        device: cuda or cpu.
        output: folder for NAME.log, the output of each stage.
        seconds: for all stages together.
        save: called with the results so far after each stage.
    """
    output.mkdir(parents=True, exist_ok=True)
    for stage in stages:
        (output / f"{stage.name}.log").unlink(missing_ok=True)  # of an earlier check
    end, results = time.monotonic() + seconds, list[Result]()
    with tempfile.TemporaryDirectory(prefix="gpu_check-") as folder:
        for stage in stages:
            left = end - time.monotonic()
            reason = _reason_to_leave_out(stage, results, left)
            if reason:
                results.append(Result(stage, LEFT_OUT, reason=reason))
            else:
                print(f"{stage.name}: {stage.about} …", flush=True)
                results.append(_run(stage, device, Path(folder), output, min(stage.seconds, left)))
            _print_end(results[-1])
            save(results)
    return results


def _reason_to_leave_out(stage: Stage, results: list[Result], left: float) -> str:
    """Returns why a stage cannot run, or an empty text. left: seconds for all stages to come."""
    if missing := missing_packages(stage.packages):
        return f"no {', no '.join(missing)}"
    if absent := [each.stage.name for each in results if each.stage.name in stage.needs and each.outcome != PASSED]:
        return f"needs the stage {', '.join(absent)}"
    return "no time left" if left < SHORTEST else ""


def _run(stage: Stage, device: str, folder: Path, output: Path, limit: float) -> Result:
    """Runs a stage for at most `limit` seconds."""
    rows_path, log_path = folder / f"{stage.name}.jsonl", output / f"{stage.name}.log"
    command = [sys.executable, "-m", "benchmarks.gpu_check.stage", stage.module, device, str(folder), str(rows_path)]
    start, reason = time.monotonic(), ""
    with log_path.open("w") as log, start_group(command, _environment(device), log) as process:
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            code, reason = 1, f"ended after {limit:.0f} s, its time limit"
    if code and not reason:
        reason = f"exit code {code}: {last_line(log_path)}"
    rows = read_rows(rows_path)
    failed = bool(reason) or not rows or any(row.outcome == FAILED for row in rows)
    if not rows and not reason:
        reason = "it has checked nothing"
    return Result(stage, FAILED if failed else PASSED, time.monotonic() - start, reason, rows)


def _environment(device: str) -> dict[str, str]:
    """Returns the environment of a stage: without launchers' variables, and with stand-ins for missing packages."""
    launched = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "GROUP_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "PYTHONSAFEPATH")
    environment = {name: value for name, value in os.environ.items() if name not in launched}
    paths = [str(ROOT), *filter(None, [environment.get("PYTHONPATH")]), *map(str, needed_fallbacks())]
    environment |= {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1", "NPROC": "1"}
    if device == "cuda":
        return environment
    # One thread: those of small networks wait for each other, several times as long where other programs run.
    return {"OMP_NUM_THREADS": "1"} | environment | {"CUDA_VISIBLE_DEVICES": ""}


def last_line(path: Path) -> str:
    """Returns the last line of a log that is not empty, shortened."""
    lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()]
    return shorten(lines[-1].strip() if lines else "no output", 200, quote=False)


def _print_end(result: Result) -> None:
    took = f" in {result.seconds:.0f} s" if result.outcome != LEFT_OUT else ""
    print(f"{result.stage.name}: {result.outcome}{took}{f': {result.reason}' if result.reason else ''}", flush=True)
