"""Trains a backbone with ArcFace and knowledge distillation: ./train_kd.sh, or python train_kd.py [--multi-step] …"""

if __name__ == "__main__":  # keeps a scheduler's signal from ending the slow imports below
    from utils.distributed.signals import ignore_checkpoint_signals

    ignore_checkpoint_signals()


from backbones import build_backbone
from config import parse_command
from train import run_training
from utils.distillation.schedule import check_teacher_folder, prepare_teacher
from utils.distillation.targets import CachedTeacherTargets, TeacherTargets, open_caches
from utils.distillation.task import DistillTask
from utils.distributed.collectives import main_process_first
from utils.distributed.process_group import wrap_ddp
from utils.distributed.restart import restartable
from utils.errors import run_cli
from utils.training.task import Task, TaskInputs


def main() -> None:
    """Runs the command."""
    description = "Train a face-recognition backbone with ArcFace and knowledge distillation."
    config = parse_command(description, switches=["multi_step"], distillation=True, resume=True)
    check_teacher_folder(config)
    run_training(config, "train_kd", DistillTask, make_distillation_task)


def make_distillation_task(inputs: TaskInputs) -> Task:
    """Returns the task of training with a teacher, after loading each of the teacher's files once. Collective."""
    config, world, dataset = inputs.config, inputs.world, inputs.dataset
    teacher, files = prepare_teacher(config, world, inputs.epoch_end_steps, build_backbone)
    targets = TeacherTargets(teacher, files)
    if config.teacher_cache:
        caches = main_process_first(world, lambda: open_caches(config, files, dataset))
        skip_bad = config.on_bad_image == "skip"
        targets = CachedTeacherTargets(teacher, files, caches, dataset, world, config.eval_batch, skip_bad)
    return DistillTask(wrap_ddp(inputs.backbone, world), inputs.header, targets, config.w)


if __name__ == "__main__":
    run_cli(restartable(main))
