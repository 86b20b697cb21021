"""Checks in seconds what could end a training hours later: python -m utils.doctor [--kd | --search] [--config FILE] …

It checks knowledge distillation (./train_kd.sh) with --kd or --multi-step, and the architecture search (NAS/search.sh)
with --search; otherwise the kind of run whose checkpoint is in config.output, or plain training (./train.sh).

It starts the processes that the run would have on this machine. They open, build and resume everything by the code of
the run and train for three steps, but write nothing except that, as at the start of a run, the output folders are
created. Exit code 1 if a check fails, 2 for a config that cannot be used.
"""

import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch.multiprocessing as mp
from tqdm import tqdm

from config import CommandParser, add_config_arguments, collect_overrides, load_config, output_override
from config.base import Config
from NAS.search import DEFAULT_CONFIG
from utils.checkpoints.run_file import saved_task_type
from utils.distributed.process_group import (
    LAUNCHER_FOLDER_ENV,
    LOOPBACK_ENVIRONMENT,
    count_gpus,
)
from utils.distributed.runtime_errors import init_run
from utils.doctor.data import check_images, check_sets
from utils.doctor.machine import check_config, check_device, check_disk, check_output, check_precision
from utils.doctor.plan import DISTILLATION, SEARCH, TRAINING, Kind, RunPlan
from utils.doctor.table import FAIL, PASS, WARN, Check, capture_warnings, collect_checks
from utils.doctor.training import check_data, check_dry_run, check_steps, check_task
from utils.errors import UserError

SUBJECTS: dict[str, Callable[[RunPlan], Iterator[Check]]] = {
    "config": check_config,
    "device": check_device,
    "precision": check_precision,
    "output": check_output,
    "data": check_data,
    "steps": check_steps,
    "task": check_task,
    "dry run": check_dry_run,
    "disk": check_disk,
    "images": check_images,  # after the dry run, because these images would count as its memory
    "sets": check_sets,
}
INDEPENDENT = {"output", "images", "sets"}  # checked by the main process alone; all others need those before them
SAME_ON_ALL = {"config", "device", "precision"}  # a failure is the same on all processes: printed by one


def main() -> None:
    """Runs the command. Raises SystemExit(1) if a check fails."""
    config, _ = parse_arguments()  # a config that cannot be used ends the doctor here, with a single line
    local, processes = count_processes(config.device)
    if local > 1:  # as launch.sh does
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // local)))
    with tempfile.TemporaryDirectory() as folder:
        try:
            # In processes of their own, so that the doctor can report one that the system ends.
            mp.spawn(_run_process, (local, processes, folder), local)
        except mp.ProcessExitedException as error:
            if error.signal_name:
                found = f"process {error.error_index} was ended by {error.signal_name}, as when memory runs out"
                _print(Check("dry run", FAIL, found, "lower batch_size, workers, or the number of processes (NPROC)"))
            raise SystemExit(1) from None


def _run_process(rank: int, local: int, processes: int, folder: str) -> None:
    """Makes the checks as one of `local` processes and prints them. Raises SystemExit(1) if one fails.

    processes: number on all machines. folder: an empty one, by which the processes find each other.
    """
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": local, "LOCAL_WORLD_SIZE": local, "GROUP_WORLD_SIZE": 1}
    os.environ |= LOOPBACK_ENVIRONMENT | {name: str(value) for name, value in ranks.items()}
    os.environ[LAUNCHER_FOLDER_ENV] = folder
    counts = dict.fromkeys((PASS, WARN, FAIL), 0)
    for check in collect_checks("processes", _open_and_check(processes)):
        if rank == 0 or (check.state == FAIL and check.subject not in SAME_ON_ALL):
            counts[check.state] += 1
            _print(check)
    if rank == 0:
        print(", ".join(f"{number} {state}" for state, number in counts.items()), flush=True)
    if counts[FAIL]:
        raise SystemExit(1)


def _open_and_check(processes: int) -> Iterator[Check]:
    """Yields all checks of this rank. Raises UserError if the processes cannot work together."""
    config, kind = parse_arguments()
    with init_run(config) as world:
        try:
            yield from run_checks(RunPlan(config, kind, world, processes))
        except SystemExit:
            if world.is_main:
                raise
            # else rank 0 reports the error and goes on


def run_checks(plan: RunPlan) -> Iterator[Check]:
    """Yields the results of all checks in order; a failure skips only the checks that need its result. Collective."""
    failed, skipped = "", list[str]()
    for subject, check in SUBJECTS.items():
        if subject in INDEPENDENT:
            if plan.world.is_main:
                yield from collect_checks(subject, check(plan))
        elif failed:
            skipped.append(subject)
        else:
            for result in collect_checks(subject, check(plan)):
                failed = subject if result.state == FAIL else failed
                yield result
    if skipped:
        yield Check(skipped[0], WARN, f"not checked: {', '.join(skipped)}", f"fix {failed} first")


def _print(check: Check) -> None:
    """Prints a line of the table and, on another line, its fix."""
    lines = [f"{check.state}  {check.subject:9}  {check.found}"]
    lines += [f"{'':17}fix: {check.fix}"] if check.fix else []
    tqdm.write("\n".join(lines))  # keeps a progress bar on the screen intact
    sys.stdout.flush()


def parse_arguments() -> tuple[Config, Kind]:
    """Returns the config of the command line, and the kind of run to check."""
    parser = CommandParser("Check what a training run with a config needs.")
    add_config_arguments(parser, switches=["multi_step"], resume=True)
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument("--kd", action="store_true", help="check knowledge distillation, as run by ./train_kd.sh")
    kinds.add_argument("--search", action="store_true", help="check the architecture search, as run by NAS/search.sh")
    args = parser.parse()
    overrides = collect_overrides(args)
    file = args.config or (DEFAULT_CONFIG if args.search else None)
    load = partial(load_config, file, overrides, saved_in=output_override(overrides))
    if args.search or args.kd or args.on:
        kind = SEARCH if args.search else DISTILLATION
    else:
        with capture_warnings():  # the check of the resume has them too
            saved = saved_task_type(Path(load().output))
        kind = next((kind for kind in (DISTILLATION, SEARCH) if kind.task_type.__name__ == saved), TRAINING)
    return load(distillation=kind is DISTILLATION), kind


def count_processes(device: str = "auto") -> tuple[int, int]:
    """Returns the number of processes of the run on this machine and on all machines.

    They come from torchrun's environment, else from NPROC and NNODES, else from the number of GPUs. Raises UserError if
    one of these variables is not a positive integer.

    device: as config.device.
    """
    local = _count("LOCAL_WORLD_SIZE", _count("NPROC", max(1, count_gpus(device))))
    return local, _count("WORLD_SIZE", local * _count("NNODES", 1))


def _count(name: str, default: int) -> int:
    """Returns the number in an environment variable. Raises UserError unless it is from 1 to 99999."""
    text = os.environ.get(name) or str(default)
    if not re.fullmatch("[0-9]{1,5}", text) or not int(text):
        raise UserError(f"{name}: should be a whole number from 1, is {text!r}")
    return int(text)
