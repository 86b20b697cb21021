"""Checks of the schedule: network, learning rate, steps, sharding of the header, and the resume point."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from easydict import EasyDict

from backbones.names import parse_network_name
from utils.checkpoints.run_file import CHECKPOINT_FILE, START_OVER_HINT
from utils.checkpoints.state_dicts import check_state_dict
from utils.checkpoints.weights import read_weights
from utils.datasets.sampler import EpochSampler, check_batch_size
from utils.datasets.shared_loader import Loader
from utils.distillation.task import DistillTask
from utils.distributed.process_group import World
from utils.doctor.plan import RunPlan
from utils.doctor.table import PASS, WARN, Check, format_processes, not_checked
from utils.errors import UserError
from utils.losses.arcface import ArcFace
from utils.losses.partial_fc import ShardedArcFace
from utils.training.arcface_task import ArcFaceTask
from utils.training.learning_rate import global_batch_size, learning_rate
from utils.training.progress import compute_epoch_end_steps
from utils.training.resume import ResumePoint, previous_run_files, resolve_resume
from utils.training.task import Task


def check_config(warn_unused_fields: Callable[[EasyDict, str, str], None], plan: RunPlan) -> Iterator[Check]:
    """Reports the network and the learning rate by epoch; settings without effect are warnings.

    warn_unused_fields: that of config.
    """
    config = plan.config
    size = "" if parse_network_name(config.net_name).depth else f", {config.channel} channels, {config.n_layers} cells"
    yield Check("config", PASS, f"{config.net_name}{size}, embedding {config.embedding_size}, {config.precision}")
    rates = [(learning_rate(config, plan.processes, epoch), epoch) for epoch in range(config.num_epoch)]
    parts = [f"{rate:.3g} from {next(group)[1]}" for rate, group in itertools.groupby(rates, lambda pair: pair[0])]
    summary = ", ".join(parts) if len(parts) <= 8 else f"{rates[0][0]:.3g} to {rates[-1][0]:.3g}"
    yield Check("config", PASS, f"{config.num_epoch} epochs; learning rate by epoch {summary}")
    kind = "distillation (./train_kd.sh)" if plan.distils else "plain training (./train.sh; --kd: for ./train_kd.sh)"
    yield Check("config", PASS, f"checked for {kind}")
    if plan.distils:
        warn_unused_fields(config, "train_kd", "./train_kd.sh")
    else:
        warn_unused_fields(config, "train", "./train.sh")


def check_steps(plan: RunPlan) -> Iterator[Check]:
    """Checks the batch size against the number of images, and computes the steps of the run."""
    config = plan.config
    if not plan.n_images:
        yield not_checked("steps")
        return
    check_batch_size(config)
    plan.sampler = EpochSampler(plan.n_images, config.batch_size, 0, plan.processes, config.seed)
    plan.epoch_end_steps = compute_epoch_end_steps(config, plan.sampler)
    batch = f"{format_processes(plan.processes)} with {config.batch_size} images each"
    yield Check("steps", PASS, f"{plan.epoch_end_steps[-1]:,}, {len(plan.sampler):,} an epoch; {batch}")


def check_head(plan: RunPlan) -> Iterator[Check]:
    """Checks that a sharded header has a class for every process."""
    config, classes = plan.config, plan.num_classes
    if config.head != "sharded":
        return
    if not classes:
        yield not_checked("head")
        return
    rank_0 = World(0, plan.processes, torch.device("cpu"))
    try:  # with embedding size 1, because this machine's memory may be too small for the real one
        ShardedArcFace(1, classes, config.s, config.m, rank_0, config.sample_rate)
    except UserError as error:
        raise UserError(error.problem, fix=f"{format_processes(classes)} at most, or head=whole") from None
    shard = -(-classes // plan.processes)
    sampled = f", {config.sample_rate:.3g} of them a step" if config.sample_rate < 1 else ""
    found = f"sharded over {format_processes(plan.processes)}: at most {shard:,} of {classes:,} classes each{sampled}"
    yield Check("head", PASS, found)


def check_resume(plan: RunPlan) -> Iterator[Check]:
    """Finds the resume point of the run, and checks that its files fit the network."""
    config, folder = plan.config, Path(plan.config.output)
    if config.resume == "0":
        yield _starts_from_scratch(folder, plan)
        return
    if plan.dataset is None or plan.sampler is None:
        yield not_checked("resume")
        return
    # As a single process with the global batch, because resolve_resume is collective.
    single_process = EasyDict({**config, "batch_size": global_batch_size(config, plan.processes)})
    task_type = DistillTask if plan.distils else ArcFaceTask
    resume_point = resolve_resume(single_process, task_type, Loader(plan.dataset, plan.sampler), plan.world)
    _check_weights(plan, resume_point)
    plan.progress, plan.epoch_end_steps = (
        resume_point.progress,
        compute_epoch_end_steps(config, plan.sampler, resume_point.progress),
    )
    if resume_point.state:  # otherwise existing checkpoints are archived
        plan.replaced = len(list(folder.glob("checkpoint.*.pth")))
    if not resume_point.progress.step:
        yield _starts_from_scratch(folder, plan)
    elif not resume_point.progress.is_finished(config):
        yield Check(
            "resume", PASS, f"resumes from step {resume_point.progress.step:,}, in epoch {resume_point.progress.epoch}"
        )
    else:
        found = f"the run in {folder} is finished: nothing to do"
        yield Check("resume", WARN, found, f"name another output, or {START_OVER_HINT}")


def _starts_from_scratch(folder: Path, plan: RunPlan) -> Check:
    """Returns the check of a run from scratch, with the number of files that it will archive."""
    n_files = len(previous_run_files(folder, ResumePoint(), Task.export_suffixes))
    moved = f"; {n_files} files of the earlier run will be moved to {folder}/old-N" if n_files else ""
    return Check("resume", PASS, f"starts from scratch{moved}")


def _check_weights(plan: RunPlan, resume_point: ResumePoint) -> None:
    """Raises UserError unless the weights of the resume point fit the backbone and the header of the run."""
    if not resume_point.state and not resume_point.export_folder:
        return
    folder = Path(plan.config.output)
    with torch.device("meta"):  # only shapes: it may be larger than this machine's memory
        header = ArcFace(plan.config.embedding_size, plan.num_classes)  # a sharded header has the same files
    for name, module in (("header", header), ("backbone", plan.backbone)):
        if resume_point.state:
            check_state_dict(module.state_dict(), resume_point.state[name], f"{folder / CHECKPOINT_FILE} ({name})")
            continue
        path = folder / f"{resume_point.progress.step}{name}.pth"
        try:
            check_state_dict(module.state_dict(), read_weights(path), str(path))
        except UserError as error:
            raise UserError(str(error), fix=f"name another step with global_step=STEP; {START_OVER_HINT}") from None
