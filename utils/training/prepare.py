"""Preparation of a run: its data, and the builder of its task once the resume point is known."""

from collections.abc import Callable
from typing import NamedTuple

from torch import nn

from backbones.compiling import compile_network
from backbones.folding import fold_in_training
from config.base import Config
from utils.datasets.sampler import check_batch_size
from utils.datasets.shared_loader import SharedMemoryLoader
from utils.datasets.training_data import load_training_data
from utils.distributed.process_group import World, to_device
from utils.losses.header import make_header
from utils.training.checkpointing.progress import compute_epoch_end_steps
from utils.training.checkpointing.resume import ResumePoint
from utils.training.freezing import freeze_modules
from utils.training.initial_header import check_initial_header, load_initial_header
from utils.training.student import check_student, load_student
from utils.training.task import Task, TaskInputs


class PreparedRun(NamedTuple):
    """Arguments of `train` besides the config and the resume point."""

    loader: SharedMemoryLoader
    num_classes: int
    make_task: Callable[[ResumePoint], Task]  # collective; raises UserError


def check_training_config(config: Config, distills: bool = False) -> None:
    """Raises UserError for a batch size or initial weights that cannot be trained with.

    distills: whether the command trains with a teacher.
    """
    check_batch_size(config)
    check_student(config)
    check_initial_header(config, distills)


def prepare_training(
    build_backbone: Callable[[Config], nn.Module],
    make_task: Callable[[TaskInputs], Task],
    config: Config,
    world: World,
    learned_centres: bool = True,
) -> PreparedRun:
    """Returns the run that trains the config's backbone with a header. Collective: call on all ranks.

    make_task: makes the task from the backbone, the header and the data. learned_centres: as `learned` of
    `make_header`. Raises UserError where config and files disagree.
    """
    loader, num_classes = load_training_data(config, world)

    def make_task_from(resume_point: ResumePoint) -> Task:
        epoch_end_steps = compute_epoch_end_steps(config, loader.sampler, resume_point.progress)
        backbone = to_device(build_backbone(config), world)
        header = make_header(config, num_classes, world, learned_centres)
        if config.student_pth and not resume_point.progress.step:
            load_student(config, backbone, header, world)
        if config.header_from and not resume_point.progress.step:
            load_initial_header(config, header, world)
        if config.freeze:
            freeze_modules(backbone, config.freeze)
        if world.device.type == "cpu":
            fold_in_training(backbone)
        if config.compile:
            compile_network(backbone)
        return make_task(TaskInputs(config, world, loader.dataset, backbone, header, epoch_end_steps))

    return PreparedRun(loader, num_classes, make_task_from)
