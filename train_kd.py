"""Trains a backbone with ArcFace and knowledge distillation: ./train_kd.sh, or python train_kd.py [--multi-step] …"""

if __name__ == "__main__":  # keeps a scheduler's signal from ending the slow imports below
    from utils.distributed.signals import ignore_checkpoint_signals

    ignore_checkpoint_signals()

from functools import partial

from backbones.build import build_backbone
from config import parse_command
from train import run_training
from utils.distillation.schedule import check_teacher_folder
from utils.distillation.task import DistillTask, prepare_distillation
from utils.distributed.restart import restartable
from utils.errors import run_cli


def main() -> None:
    """Runs the command."""
    description = "Train a face-recognition backbone with ArcFace and knowledge distillation."
    config = parse_command(description, switches=["multi_step"], distillation=True, resume=True)
    check_teacher_folder(config)
    run_training(config, "train_kd", DistillTask, partial(prepare_distillation, build_backbone))


if __name__ == "__main__":
    run_cli(restartable(main))
