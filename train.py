"""Trains a backbone with ArcFace: ./train.sh, or python train.py [--config FILE] [field=value …]"""

if __name__ == "__main__":  # keeps a scheduler's signal from ending the slow imports below
    from utils.distributed.signals import ignore_checkpoint_signals

    ignore_checkpoint_signals()

import os
import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path

from backbones.build import build_backbone
from config import ensure_output_folder, parse_command, require_data, save_config, warn_unused_fields
from config.base import Config
from eval.scoring import Scorer
from utils.distributed.data_parallel import unwrap_ddp
from utils.distributed.process_group import World
from utils.distributed.restart import restartable
from utils.errors import run_cli
from utils.logs.logger import log
from utils.training.arcface_task import ArcFaceTask, make_arcface_task
from utils.training.checkpointing.resume import already_finished_message, resolve_resume
from utils.training.engine import train
from utils.training.prepare import PreparedRun, check_training_config, prepare_training
from utils.training.session import training_session
from utils.training.task import Task


def main() -> None:
    """Runs the command."""
    config = parse_command("Train a face-recognition backbone with ArcFace.", resume=True)
    run_training(config, "train", ArcFaceTask, partial(prepare_training, build_backbone, make_arcface_task))


def run_training(
    config: Config, command: str, task_type: type[Task], prepare: Callable[[Config, World], PreparedRun]
) -> None:
    """Trains a backbone as the config says. train.py and train_kd.py differ only in the task.

    Raises UserError for a config that cannot be used.

    Args:
        config: a checked config.
        command: "train" or "train_kd", to warn about fields that this command does not use.
        task_type: class of the task, which knows the files to resume from.
        prepare: opens the data of the run; see `prepare_training`.
    """
    require_data(config)
    check_training_config(config, distills=command == "train_kd")
    ensure_output_folder(config, "output")
    ensure_output_folder(config, "log_dir")

    with training_session(config, "training.log", "Training: ") as world:
        warn_unused_fields(config, command)
        run = prepare(config, world)
        resume_point = resolve_resume(config, task_type, run.loader, world)
        if resume_point.progress.is_finished(config):
            log.info(already_finished_message(config))
            return
        task = run.make_task(resume_point)
        scorer = Scorer(config, world) if config.eval_step else None
        verify = partial(scorer.accuracies, unwrap_ddp(task.backbone)) if scorer else None
        step = train(task, run.loader, config, world, verify, resume_point, on_begin=partial(save_config, config))
        log.info(f"Done: {step} steps; evaluate the checkpoints with {evaluation_command(config)}")


def evaluation_command(config: Config) -> str:
    """Returns the command that evaluates the checkpoints of the run, to be typed in the current working folder.

    It needs no further options: eval.py reads the config.json in the output folder.
    """
    script = Path(os.path.relpath(Path(__file__).with_name("eval") / "eval.py"))
    return shlex.join(["python", str(script), f"output={config.output}"])


if __name__ == "__main__":
    run_cli(restartable(main))
