"""Trains a backbone with ArcFace and a teacher: ./train_kd.sh, or python train_kd.py [--multi-step] …"""

if __name__ == "__main__":  # a scheduler's signal during the imports below, which take seconds, ends nothing
    from utils.distributed.signals import drop_requests

    drop_requests()

from collections.abc import Sequence

from easydict import EasyDict
from torch import nn

from backbones import build_backbone
from config import parse_command
from train import run_training
from utils.datasets.shared_loader import Loader
from utils.distillation.schedule import check_folders, prepare_teacher
from utils.distillation.targets import CachedLessons, Lessons, open_caches
from utils.distillation.task import DistillTask
from utils.distributed.collectives import main_first
from utils.distributed.process_group import World, wrap
from utils.errors import run
from utils.training.task import Task


def main() -> None:
    """The command line."""
    description = "Train a face-recognition backbone with ArcFace and a teacher."
    config = parse_command(description, switches=["multi_step"], distills=True, resume=True)
    check_folders(config)
    run_training(config, "train_kd", DistillTask, distillation)


def distillation(
    config: EasyDict, world: World, loader: Loader, backbone: nn.Module, header: nn.Module, ends: Sequence[int]
) -> Task:
    """Training with a teacher, every file of which has been tried when this returns."""
    teacher, files = prepare_teacher(config, world, ends, build_backbone)
    lessons = Lessons(teacher, files)
    if config.teacher_cache:
        caches = main_first(world, lambda: open_caches(config, files, loader.dataset))
        skip_bad = config.on_bad_image == "skip"
        lessons = CachedLessons(teacher, files, caches, loader.dataset, world, config.eval_batch, skip_bad)
    return DistillTask(wrap(backbone, world), header, lessons, config.w)


if __name__ == "__main__":
    run(main)
