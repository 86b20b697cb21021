"""How long training stops for checkpoint.pth: the share of the time at config.save_step steps between two.

    python benchmarks/checkpoints.py [--config FILE] [--steps 6] [field=value …]

Measures a step of the network and header on noise, and how long the loop waits at a save, which copies the state and
hands it to the thread that writes. Beside it, what a save would cost if the loop wrote the file itself.
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

if not __package__:  # run as a script: the modules are found from the project's folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import torch
from easydict import EasyDict

from backbones import build_backbone
from config import CommandParser, add_config_arguments, load_config, overrides_of
from utils.checkpoints.async_writer import AsyncFileWriter
from utils.checkpoints.run_file import write_checkpoint
from utils.distributed.process_group import World, init_distributed, to_device
from utils.errors import UserError, run_cli
from utils.logs.meters import MeanMeter
from utils.losses.arcface import ArcFace
from utils.training.arcface_task import ArcFaceTask
from utils.training.optimizer_step import OptimizerStep
from utils.training.progress import TrainProgress
from utils.training.state import TrainingState
from utils.training.task import Batch

CLASSES = 85742  # of MS1MV2


class Bench:
    """A network and its header, with everything that a checkpoint holds."""

    def __init__(self, config: EasyDict, world: World) -> None:
        self.config, self.world = config, world
        backbone = to_device(build_backbone(config), world)
        header = to_device(ArcFace(config.embedding_size, config.num_classes or CLASSES, config.s, config.m), world)
        self.task = ArcFaceTask(backbone, header)
        self.update = OptimizerStep(self.task, np.zeros(1, np.int64), config, world)
        data: Any = SimpleNamespace(n_images=0, fingerprint="")
        loader: Any = SimpleNamespace(sampler=data, dataset=data, skipped=0)
        self.state = TrainingState(self.task, self.update, MeanMeter(world), loader, config, world)
        n = config.batch_size
        nothing = torch.zeros(n, dtype=torch.int64)
        images = torch.rand(n, 3, 112, 112, device=world.device).to(memory_format=torch.channels_last)
        self.batch = Batch(images, nothing.to(world.device), nothing, nothing.bool())

    def step(self) -> None:
        self.update(self.batch, step=0)

    def wait(self) -> None:
        if self.world.device.type == "cuda":
            torch.cuda.synchronize()


def main() -> None:
    """The command line."""
    parser = CommandParser(__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_config_arguments(parser)
    parser.add_argument("--steps", type=int, default=6, help="measured, between two saves (%(default)s)")
    args = parser.parse()
    if args.steps < 2:
        raise UserError(f"--steps {args.steps}: should be at least 2")
    config = load_config(args.config, overrides_of(args))
    with init_distributed() as world, tempfile.TemporaryDirectory(dir=".") as folder, AsyncFileWriter() as writer:
        bench = Bench(config, world)
        bench.step()
        quiet, beside, stops, sync = [], [], [], []
        for turn in range(3):
            content = bench.state.state_dict(TrainProgress(turn))
            assert content
            started = time.perf_counter()
            write_checkpoint(Path(folder), config.keep, content)
            sync.append(time.perf_counter() - started)
            quiet += [_seconds(bench) for _ in range(args.steps)]
            started = time.perf_counter()
            content = bench.state.state_dict(TrainProgress(turn))
            assert content
            writer.submit({"checkpoint.pth": partial(write_checkpoint, Path(folder), config.keep, content)})
            stops.append(time.perf_counter() - started)
            beside += [_seconds(bench) for _ in range(args.steps)]
            writer.wait()
        size = (Path(folder) / "checkpoint.pth").stat().st_size / 1e6
    step, slower = median(quiet), max(0.0, sum(beside) / len(beside) - median(quiet)) * args.steps
    between = config.save_step * step
    print(f"{world.device.type}, batch {config.batch_size}, {size:.0f} MB: a step {step:.3f} s")
    print(f"{'':<34}{'s a save':>10}{'share of the time':>20}")
    for name, seconds in (
        ("the loop stops", median(stops)),
        (f"and the {args.steps} steps after are slower by", slower),
        ("if the loop wrote it itself", median(stops) + median(sync)),
    ):
        print(f"{name:<34}{seconds:>10.3f}{100 * seconds / (between + seconds):>18.2f} %")


def _seconds(bench: Bench) -> float:
    started = time.perf_counter()
    bench.step()
    bench.wait()
    return time.perf_counter() - started


if __name__ == "__main__":
    run_cli(main)
