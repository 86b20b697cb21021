"""Measures how long training stops to save checkpoint.pth, also as a share of config.save_step steps.

    python benchmarks/checkpoints.py [--config FILE] [--steps 6] [field=value …]

It times a step of backbone and header on noise, and the wait of the loop at a save, which copies the state and passes
it to a background thread. For comparison it times a save in which the loop writes the file itself.
"""

import argparse
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

if not __package__:  # run as a script: import modules from the project folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import torch

from backbones.build import build_backbone
from config import CommandParser, add_config_arguments, collect_overrides, load_config
from config.base import Config
from utils.checkpoints.async_writer import AsyncFileWriter
from utils.checkpoints.run_file import write_checkpoint
from utils.distributed.process_group import World, init_distributed, to_device
from utils.errors import UserError, run_cli
from utils.logs.meters import MeanMeter
from utils.losses.arcface import ArcFace
from utils.training.arcface_task import ArcFaceTask
from utils.training.checkpointing.progress import TrainProgress
from utils.training.checkpointing.state import TrainingState
from utils.training.optimizer_step import OptimizerStep
from utils.training.task import Batch

CLASSES = 85742  # identities of MS1MV2


class Benchmark:
    """Backbone and header on noise, with all the state that a checkpoint holds."""

    def __init__(self, config: Config, world: World) -> None:
        self.config, self.world = config, world
        backbone = to_device(build_backbone(config), world)
        header = to_device(ArcFace(config.embedding_size, config.num_classes or CLASSES, config.s, config.m), world)
        self.task = ArcFaceTask(backbone, header)
        self.optimizer_step = OptimizerStep(self.task, np.zeros(1, np.int64), config, world)
        data: Any = SimpleNamespace(n_images=0, fingerprint="")
        loader: Any = SimpleNamespace(sampler=data, dataset=data, skipped=0)
        self.state = TrainingState(self.task, self.optimizer_step, MeanMeter(world), loader, config, world)
        n = config.batch_size
        zeros = torch.zeros(n, dtype=torch.int64)
        images = torch.rand(n, 3, 112, 112, device=world.device).to(memory_format=torch.channels_last)
        self.batch = Batch(images, zeros.to(world.device), zeros, zeros.bool())

    def step(self) -> None:
        """Runs one training step; on a GPU it returns before the step is done."""
        self.optimizer_step(self.batch, step=0)

    def synchronize(self) -> None:
        """Waits for the GPU, if there is one."""
        if self.world.device.type == "cuda":
            torch.cuda.synchronize()


def main() -> None:
    """Runs the benchmark and prints its table."""
    parser = CommandParser(__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_config_arguments(parser)
    parser.add_argument("--steps", type=int, default=6, help="steps measured between two saves (%(default)s)")
    args = parser.parse()
    if args.steps < 2:
        raise UserError(f"--steps {args.steps}: should be at least 2")
    config = load_config(args.config, collect_overrides(args))
    with init_distributed() as world, tempfile.TemporaryDirectory(dir=".") as folder, AsyncFileWriter() as writer:
        benchmark = Benchmark(config, world)
        benchmark.step()
        idle_steps, writing_steps, stops, writes = [], [], [], []
        for repeat in range(3):
            content = benchmark.state.state_dict(TrainProgress(repeat))
            assert content
            start = time.perf_counter()
            write_checkpoint(Path(folder), config.keep, content)
            writes.append(time.perf_counter() - start)
            idle_steps += [_step_seconds(benchmark) for _ in range(args.steps)]
            start = time.perf_counter()
            content = benchmark.state.state_dict(TrainProgress(repeat))
            assert content
            writer.submit({"checkpoint.pth": partial(write_checkpoint, Path(folder), config.keep, content)})
            stops.append(time.perf_counter() - start)
            writing_steps += [_step_seconds(benchmark) for _ in range(args.steps)]
            writer.wait()
        size = (Path(folder) / "checkpoint.pth").stat().st_size / 1e6
    step = median(idle_steps)
    slower = max(0.0, sum(writing_steps) / len(writing_steps) - step) * args.steps
    between = config.save_step * step
    print(f"{world.device.type}, batch {config.batch_size}, {size:.0f} MB: a step {step:.3f} s")
    print(f"{'':<34}{'s a save':>10}{'share of the time':>20}")
    for name, seconds in (
        ("the loop stops", median(stops)),
        (f"and the {args.steps} steps after are slower by", slower),
        ("if the loop wrote it itself", median(stops) + median(writes)),
    ):
        print(f"{name:<34}{seconds:>10.3f}{100 * seconds / (between + seconds):>18.2f} %")


def _step_seconds(benchmark: Benchmark) -> float:
    """Returns the seconds of one training step."""
    start = time.perf_counter()
    benchmark.step()
    benchmark.synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    run_cli(main)
