"""Trains a backbone with ArcFace: ./train.sh, or python train.py [--config FILE] [field=value …]"""

if __name__ == "__main__":  # keeps a scheduler's signal from ending the slow imports below
    from utils.distributed.signals import ignore_checkpoint_signals

    ignore_checkpoint_signals()

import os
import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path

from backbones import build_backbone
from config import ensure_output_folder, parse_command, require_data, save_config, warn_unused_fields
from config.base import Config
from eval.scoring import Scorer
from utils.datasets.sampler import check_batch_size
from utils.datasets.training_data import load_training_data
from utils.distributed.process_group import to_device, wrap_ddp
from utils.distributed.restart import restartable
from utils.errors import run_cli
from utils.logs.run_log import log
from utils.losses.header import make_header
from utils.training.arcface_task import ArcFaceTask
from utils.training.checkpointing.progress import compute_epoch_end_steps
from utils.training.checkpointing.resume import already_finished_message, resolve_resume
from utils.training.engine import train
from utils.training.session import training_session
from utils.training.student import check_student, load_student
from utils.training.task import Task, TaskInputs


def main() -> None:
    """Runs the command."""
    config = parse_command("Train a face-recognition backbone with ArcFace.", resume=True)
    run_training(config, "train", ArcFaceTask, make_arcface_task)


def make_arcface_task(inputs: TaskInputs) -> Task:
    """Returns the task of ArcFace training without a teacher."""
    return ArcFaceTask(wrap_ddp(inputs.backbone, inputs.world), inputs.header)


def run_training(config: Config, command: str, task_type: type[Task], make_task: Callable[[TaskInputs], Task]) -> None:
    """Trains a backbone as the config says. train.py and train_kd.py differ only in the task.

    Raises UserError for a config that cannot be used.

    Args:
        config: a checked config.
        command: "train" or "train_kd", to warn about fields that this command does not use.
        task_type: class of the task, which knows the files to resume from.
        make_task: makes the task from the backbone, the header and the data.
    """
    require_data(config)
    check_batch_size(config)
    check_student(config)
    ensure_output_folder(config, "output")
    ensure_output_folder(config, "log_dir")

    with training_session(config, "training.log", "Training: ") as world:
        warn_unused_fields(config, command)
        loader, num_classes = load_training_data(config, world)
        resume_point = resolve_resume(config, task_type, loader, world)
        if resume_point.progress.is_finished(config):
            log.info(already_finished_message(config))
            return
        epoch_end_steps = compute_epoch_end_steps(config, loader.sampler, resume_point.progress)
        backbone = to_device(build_backbone(config), world)
        header = make_header(config, num_classes, world)
        if config.student_pth and not resume_point.progress.step:
            load_student(config, backbone, header, world)
        if config.compile:
            backbone.compile()
        scorer = Scorer(config, world) if config.eval_step else None
        task = make_task(TaskInputs(config, world, loader.dataset, backbone, header, epoch_end_steps))
        verify = partial(scorer.accuracies, backbone) if scorer else None
        step = train(task, loader, config, world, verify, resume_point, on_begin=partial(save_config, config))
        log.info(f"Done: {step} steps; evaluate the checkpoints with {evaluation_command(config)}")


def evaluation_command(config: Config) -> str:
    """Returns the command that evaluates the checkpoints of the run, to be typed in the current working folder.

    It needs no further options: eval.py reads the config.json in the output folder.
    """
    script = Path(os.path.relpath(Path(__file__).with_name("eval") / "eval.py"))
    return shlex.join(["python", str(script), f"output={config.output}"])


if __name__ == "__main__":
    run_cli(restartable(main))
