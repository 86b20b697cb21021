"""Checks of the training itself: its data, its start, and a dry run of its first steps."""

import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from config import require_data
from utils.checkpoints.run_file import START_OVER_HINT
from utils.datasets.sampler import EpochSampler
from utils.distributed.collectives import run_on_main
from utils.distributed.runtime_errors import translate_runtime_errors
from utils.doctor.plan import RunPlan
from utils.doctor.table import PASS, WARN, Check, format_bytes, format_hours, format_processes
from utils.errors import UserError
from utils.training.checkpointing.progress import compute_epoch_end_steps
from utils.training.checkpointing.resume import ResumePoint, previous_run_files, resolve_resume
from utils.training.engine import train
from utils.training.learning_rate import global_batch_size

TIMED_STEPS = 2  # after one more step that warms up
STATUS = Path("/proc/self/status")


class _Measured(BaseException):
    """Ends `train` once enough steps are timed."""


def check_data(plan: RunPlan) -> Iterator[Check]:
    """Checks the files of the training images and every label, and allocates the memory of the loader workers."""
    require_data(plan.config)
    without_cache = replace(plan.config, teacher_cache="")  # which the dry run would create and fill
    run = plan.run = plan.kind.prepare(without_cache, plan.world)
    run_on_main(plan.world, run.loader.label_check.raise_pending_error)
    found = f"{len(run.loader.dataset.keys):,} images of {run.num_classes:,} identities in {plan.config.rec}"
    yield Check("data", PASS, found)


def check_steps(plan: RunPlan) -> Iterator[Check]:
    """Finds where the run starts, from its checkpoint or from scratch, and its steps from there."""
    assert plan.run
    config, folder, kind = plan.config, Path(plan.config.output), plan.kind
    sampler = EpochSampler(plan.run.loader.sampler.n_images, config.batch_size, 0, plan.processes, config.seed)
    resume_point = plan.resume_point = resolve_resume(config, kind.task_type, plan.run.loader, plan.world)
    progress = resume_point.progress
    ends = compute_epoch_end_steps(config, sampler, progress)
    plan.total_steps, plan.epochs_left = ends[-1], len(ends) - progress.epoch
    batch = f"{format_processes(plan.processes)} with {config.batch_size} images each"
    yield Check("steps", PASS, f"{ends[-1]:,}, {len(sampler):,} an epoch; {batch}")
    if resume_point.state:  # otherwise existing checkpoints are archived
        plan.replaced = len(list(folder.glob("checkpoint.*.pth")))
    if progress.is_finished(config):
        found = f"the run in {folder} is finished: nothing to do"
        yield Check("steps", WARN, found, f"name another output, or {START_OVER_HINT}")
    elif progress.step:
        yield Check("steps", PASS, f"resumes from step {progress.step:,}, in epoch {progress.epoch}")
    else:
        n_files = len(previous_run_files(folder, ResumePoint(), kind.task_type.export_suffixes))
        moved = f"; {n_files} files of the earlier run will be moved to {folder}/old-N" if n_files else ""
        yield Check("steps", PASS, f"starts from {config.student_pth or 'scratch'}{moved}")


def check_task(plan: RunPlan) -> Iterator[Check]:
    """Builds network, header, starting weights and teacher, on the device. Reads every file of the teacher."""
    if plan.run and plan.total_steps > plan.resume_point.progress.step:
        plan.task = plan.run.make_task(plan.resume_point)
        weights = sum(p.numel() for module in (plan.task.backbone, plan.task.header) for p in module.parameters())
        teacher = f", learns from {plan.config.teacher_pth}" if plan.kind.command == "train_kd" else ""
        yield Check("task", PASS, f"{weights:,} weights on {plan.world.device}{teacher}")


def check_dry_run(plan: RunPlan) -> Iterator[Check]:
    """Trains for a few steps with real batches, and reports speed, hours and peak memory. Writes no output."""
    if not plan.task:
        return
    step, total, size = plan.resume_point.progress.step, plan.total_steps, plan.world.size
    with translate_runtime_errors(plan.config):
        seconds = _measure_step(plan)
    if seconds:
        speed = global_batch_size(plan.config, size) / seconds
        to_go = f", {format_hours((total - step) * seconds)} to go" if step else ""
        found = f"{speed:,.1f} img/s by {format_processes(size)}: {format_hours(total * seconds)} for the run{to_go}"
        without = " and the teacher's cache" if plan.config.teacher_cache and plan.kind.command == "train_kd" else ""
        yield Check("dry run", PASS, f"{found}, without evaluation{without}")
    if plan.world.device.type == "cuda":
        of_total = torch.cuda.get_device_properties(plan.world.device).total_memory
        peak = f"{format_bytes(torch.cuda.max_memory_allocated())} of the GPU's {format_bytes(of_total)}"
    else:
        peak = format_bytes(peak_memory())
    yield Check("dry run", PASS, f"peak memory {peak} in each process")


def _measure_step(plan: RunPlan) -> float:
    """Trains for a warm-up step and TIMED_STEPS more; returns the seconds of one, 0 if there is no second step."""
    assert plan.run and plan.task
    progress, times = plan.resume_point.progress, list[float]()
    # Not beyond the end of the epoch or the run, after which files are written.
    steps_left = plan.run.loader.sampler.num_batches(progress.samples_seen), plan.total_steps - progress.step
    n_steps = min(1 + TIMED_STEPS, *steps_left)

    def time_step(step: int) -> dict[str, float]:
        if plan.world.device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter())
        if step == progress.step + n_steps:
            raise _Measured
        return {}

    with tempfile.TemporaryDirectory() as folder, suppress(_Measured):
        changed: dict[str, Any] = {"eval_step": 1, "save_step": sys.maxsize, "save_initial": False}
        changed["max_bad_steps"] = sys.maxsize  # whose report would be lost with the folder
        config = replace(plan.config, output=folder, log_dir=folder, **changed)
        try:
            train(plan.task, plan.run.loader, config, plan.world, time_step, plan.resume_point)
        except UserError as error:  # names the checkpoint as if it were in the temporary folder
            raise UserError(error.problem.replace(folder, plan.config.output), error.fix) from None
    return (times[-1] - times[0]) / max(1, len(times) - 1)


def peak_memory() -> int:
    """Returns the most memory that this process has used so far, in bytes."""
    if STATUS.is_file():  # Linux, where ru_maxrss of a new process includes that of its parent
        lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
        return 1024 * int(lines["VmHWM"].split()[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
