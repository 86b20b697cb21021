"""Kinds of runs that the doctor checks, and what it finds out about one."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from backbones.build import build_backbone
from config.base import Config
from NAS.search import check_config, prepare_search
from NAS.task import SearchTask
from utils.distillation.task import DistillTask, prepare_distillation
from utils.distributed.process_group import World
from utils.training.arcface_task import ArcFaceTask, make_arcface_task
from utils.training.checkpointing.resume import ResumePoint
from utils.training.prepare import PreparedRun, check_training_config, prepare_training
from utils.training.task import Task


class Kind(NamedTuple):
    """Kind of run: its command, and what that command calls."""

    title: str
    command: str  # as `warn_unused_fields` names it
    script: str
    task_type: type[Task]
    check_config: Callable[[Config], None]  # raises UserError
    prepare: Callable[[Config, World], PreparedRun]


_prepare_arcface = partial(prepare_training, build_backbone, make_arcface_task)
_prepare_distillation = partial(prepare_distillation, build_backbone)
TRAINING = Kind("plain training", "train", "./train.sh", ArcFaceTask, check_training_config, _prepare_arcface)
_check_distillation = partial(check_training_config, distills=True)
DISTILLATION = Kind(
    "distillation", "train_kd", "./train_kd.sh", DistillTask, _check_distillation, _prepare_distillation
)
SEARCH = Kind("architecture search", "search", "NAS/search.sh", SearchTask, check_config, prepare_search)


@dataclass
class RunPlan:
    """Run that is checked, and what the checks so far have found out about it."""

    config: Config
    kind: Kind
    world: World  # the processes of this machine, which all make the checks
    processes: int  # processes on all machines
    run: PreparedRun | None = None
    resume_point: ResumePoint = field(default_factory=ResumePoint)
    total_steps: int = 0
    epochs_left: int = 0
    replaced: int = 0  # checkpoints of this run that newer ones will replace
    task: Task | None = None
