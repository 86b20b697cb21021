"""The course of the run: its network, learning rate and steps, how its head is split, where it begins."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from easydict import EasyDict

from backbones.names import parse_name
from utils.checkpoints.run_file import CHECKPOINT_FILE, START_OVER_HINT
from utils.checkpoints.weights import check_state, read_weights
from utils.datasets.sampler import EpochSampler, check_batch_size
from utils.datasets.shared_loader import Loader
from utils.distillation.task import DistillTask
from utils.distributed.process_group import World
from utils.doctor.plan import Run
from utils.doctor.table import PASS, WARN, Check, format_processes, unknown
from utils.errors import UserError
from utils.losses.arcface import ArcFace
from utils.losses.partial_fc import ShardedArcFace
from utils.training.arcface_task import ArcFaceTask
from utils.training.progress import epoch_ends
from utils.training.resume import ResumePoint, previous_run_files, resolve_resume
from utils.training.task import Task


def settings(log_unused: Callable[[EasyDict, str, str], None], plan: Run) -> Iterator[Check]:
    """The network, the schedule, and as warnings the settings that have no effect."""
    config = plan.config
    size = "" if parse_name(config.net_name).depth else f", {config.channel} channels, {config.n_layers} cells"
    yield Check("config", PASS, f"{config.net_name}{size}, embedding {config.embedding_size}, {config.precision}")
    rate = config.lr * config.batch_size * plan.processes / 512
    rates = [(rate * config.lr_func(epoch), epoch) for epoch in range(config.num_epoch)]
    parts = [f"{lr:.3g} from {next(group)[1]}" for lr, group in itertools.groupby(rates, lambda pair: pair[0])]
    told = ", ".join(parts) if len(parts) <= 8 else f"{rates[0][0]:.3g} to {rates[-1][0]:.3g}"
    yield Check("config", PASS, f"{config.num_epoch} epochs; learning rate by epoch {told}")
    kind = "distillation (./train_kd.sh)" if plan.distils else "plain training (./train.sh; --kd: for ./train_kd.sh)"
    yield Check("config", PASS, f"checked for {kind}")
    if plan.distils:
        log_unused(config, "train_kd", "./train_kd.sh")
    else:
        log_unused(config, "train", "./train.sh")


def steps(plan: Run) -> Iterator[Check]:
    """Epochs and batches."""
    config = plan.config
    if not plan.n_images:
        yield unknown("steps")
        return
    check_batch_size(config)
    plan.sampler = EpochSampler(plan.n_images, config.batch_size, 0, plan.processes, config.seed)
    plan.epoch_end_steps = epoch_ends(config, plan.sampler)
    batch = f"{format_processes(plan.processes)} with {config.batch_size} images each"
    yield Check("steps", PASS, f"{plan.epoch_end_steps[-1]:,}, {len(plan.sampler):,} an epoch; {batch}")


def head(plan: Run) -> Iterator[Check]:
    """Whether a sharded head has a class for every process."""
    config, classes = plan.config, plan.num_classes
    if config.head != "sharded":
        return
    if not classes:
        yield unknown("head")
        return
    first = World(0, plan.processes, torch.device("cpu"))
    try:  # of embeddings of one number, for they may be too many for this machine
        ShardedArcFace(1, classes, config.s, config.m, first, config.sample_rate)
    except UserError as error:
        found = str(error).partition("; ")[0]
        raise UserError(f"{found}; {format_processes(classes)} at most, or head=whole") from None
    most = -(-classes // plan.processes)
    part = f", {config.sample_rate:.3g} of them a step" if config.sample_rate < 1 else ""
    found = f"sharded over {format_processes(plan.processes)}: at most {most:,} of {classes:,} classes each{part}"
    yield Check("head", PASS, found)


def resume(plan: Run) -> Iterator[Check]:
    """Where the run begins, and whether what is there fits the network."""
    config, folder = plan.config, Path(plan.config.output)
    if config.resume == "0":
        yield _begins_anew(folder, plan)
        return
    if plan.dataset is None or plan.sampler is None:
        yield unknown("resume")
        return
    # As one process that has the batches of all, for more would ask each other.
    joint = EasyDict({**config, "batch_size": config.batch_size * plan.processes})
    task_type = DistillTask if plan.distils else ArcFaceTask
    resume_point = resolve_resume(joint, task_type, Loader(plan.dataset, plan.sampler), plan.world)
    _load(plan, resume_point)
    plan.progress, plan.epoch_end_steps = resume_point.progress, epoch_ends(config, plan.sampler, resume_point.progress)
    if resume_point.state:  # else those that are there are put aside
        plan.replaced = len(list(folder.glob("checkpoint.*.pth")))
    if not resume_point.progress.step:
        yield _begins_anew(folder, plan)
    elif not resume_point.progress.is_finished(config):
        yield Check(
            "resume", PASS, f"goes on from step {resume_point.progress.step:,}, in epoch {resume_point.progress.epoch}"
        )
    else:
        yield Check(
            "resume", WARN, f"{folder} holds the whole run: nothing to do", f"name another output, or {START_OVER_HINT}"
        )


def _begins_anew(folder: Path, plan: Run) -> Check:
    earlier = len(previous_run_files(folder, ResumePoint(), Task.suffixes))
    moved = f"; {earlier} files of the earlier run will be moved to {folder}/old-N" if earlier else ""
    return Check("resume", PASS, f"begins anew{moved}")


def _load(plan: Run, resume_point: ResumePoint) -> None:
    """Raises UserError unless what the run goes on from is of its networks."""
    if not resume_point.state and not resume_point.export_folder:
        return
    folder = Path(plan.config.output)
    with torch.device("meta"):  # shapes alone: it may be larger than this machine's memory
        header = ArcFace(plan.config.embedding_size, plan.num_classes)  # sharded, it has the same files
    for name, module in (("header", header), ("backbone", plan.backbone)):
        if resume_point.state:
            check_state(module.state_dict(), resume_point.state[name], f"{folder / CHECKPOINT_FILE} ({name})")
            continue
        path = folder / f"{resume_point.progress.step}{name}.pth"
        try:
            check_state(module.state_dict(), read_weights(path), str(path))
        except UserError as error:
            raise UserError(f"{error}; name another step with global_step=STEP; {START_OVER_HINT}") from None
