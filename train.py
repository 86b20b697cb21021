"""Trains a backbone with ArcFace: ./train.sh, or python train.py [--config FILE] [field=value …]"""

if __name__ == "__main__":  # a scheduler's signal during the imports below, which take seconds, ends nothing
    from utils.distributed.signals import drop_requests

    drop_requests()

import os
import shlex
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from easydict import EasyDict
from torch import nn

from backbones import build_backbone
from config import log_unused, make_folder, parse_command, require_data, save_config
from eval.scoring import Scorer
from utils.datasets.sampler import check_batch_size
from utils.datasets.shared_loader import Loader
from utils.datasets.training_data import load_training_data
from utils.distributed.exit_status import ending
from utils.distributed.process_group import World, place, processes, wrap
from utils.distributed.run_lock import alone
from utils.distributed.runtime_errors import told
from utils.errors import run
from utils.logs.run_log import init_logging, log
from utils.losses.arcface import ArcFace
from utils.losses.partial_fc import ShardedArcFace
from utils.training.arcface_task import ArcFaceTask
from utils.training.engine import train
from utils.training.progress import epoch_ends
from utils.training.resume import find_start, nothing_to_do
from utils.training.student import check_student, load_student
from utils.training.task import Task

# What a way of training makes of the config, the data, the backbone, the header and the step at each epoch's end.
MakeTask = Callable[[EasyDict, World, Loader, nn.Module, nn.Module, Sequence[int]], Task]


def main() -> None:
    """The command line."""
    config = parse_command("Train a face-recognition backbone with ArcFace.", resume=True)
    run_training(config, "train", ArcFaceTask, arcface)


def arcface(
    config: EasyDict, world: World, loader: Loader, backbone: nn.Module, header: nn.Module, ends: Sequence[int]
) -> Task:
    """Plain training."""
    return ArcFaceTask(wrap(backbone, world), header)


def make_header(config: EasyDict, num_classes: int, world: World) -> nn.Module:
    """The config's ArcFace layer, on the device; whole, it averages its gradient over the processes."""
    if config.head == "sharded":
        sizes = (config.embedding_size, num_classes, config.s, config.m)
        return ShardedArcFace(*sizes, world, config.sample_rate, config.seed)
    return wrap(place(ArcFace(config.embedding_size, num_classes, config.s, config.m), world), world)


def run_training(config: EasyDict, command: str, way: type[Task], make_task: MakeTask) -> None:
    """Trains by the config: train.py and train_kd.py differ in the task alone.

    command: train or train_kd, whose unused settings are logged.
    """
    require_data(config)
    check_batch_size(config)
    check_student(config)
    output, _ = make_folder(config, "output"), make_folder(config, "log_dir")

    with (
        told(config), processes(timeout=config.timeout) as world, alone(output, world), ending(output, world)
    ):  # fmt: skip
        init_logging(output / "training.log" if world.is_main else None, prefix="Training: ")
        log_unused(config, command)
        torch.manual_seed(config.seed)
        loader, num_classes = load_training_data(config, world)
        start = find_start(config, way, loader, world)
        if start.position.is_last(config):
            log.info(nothing_to_do(config))
            return
        ends = epoch_ends(config, loader.sampler, start.position)
        backbone = place(build_backbone(config), world)
        header = make_header(config, num_classes, world)
        if config.student_pth and not start.position.step:
            load_student(config, backbone, header, world)
        if config.compile:
            backbone.compile()
        scorer = Scorer(config, world) if config.eval_step else None
        task = make_task(config, world, loader, backbone, header, ends)
        verify = partial(scorer.accuracies, backbone) if scorer else None
        step = train(task, loader, config, world, verify, start, on_begin=partial(save_config, config))
        log.info(f"Done: {step} steps; score the checkpoints with {evaluation_command(config)}")


def evaluation_command(config: EasyDict) -> str:
    """The command that scores the run's checkpoints by the config.json beside them, from the working folder."""
    script = Path(os.path.relpath(Path(__file__).with_name("eval") / "eval.py"))
    return shlex.join(["python", str(script), f"output={config.output}"])


if __name__ == "__main__":
    run(main)
