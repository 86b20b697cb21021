"""Measures the training speed with a teacher: evaluated at every step, or read from the cache of its embeddings.

    python benchmarks/distillation.py [--config FILE] [teacher_network=iresnet50] [field=value …]

Both take turns in one process, on one random batch; a step without a teacher is measured for comparison. The cache is
full, as it is from the second epoch on, and as large as the data in rec. Weights are random, because speed does not
depend on them.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

if not __package__:  # run as a script: import modules from the project folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import torch

from backbones.build import build_backbone
from config import CommandParser, load_config
from config.base import Config
from utils.datasets.alignment import SIZE
from utils.datasets.face_dataset import FaceDataset
from utils.datasets.transforms import normalise
from utils.distillation.cache import TeacherCache
from utils.distillation.targets import CachedTeacherTargets, TeacherTargets
from utils.distillation.task import DistillTask
from utils.distillation.teacher import NetworkTeacher, Teacher, teacher_network_config
from utils.distributed.process_group import World, autocast, init_distributed, to_device
from utils.errors import run_cli
from utils.losses.arcface import ArcFace
from utils.training.arcface_task import ArcFaceTask
from utils.training.task import Batch, Task

CLASSES = 1000


def cached_targets(folder: Path, teacher: Teacher, config: Config, world: World) -> CachedTeacherTargets:
    """Returns targets from a full cache of random embeddings for the images in config.rec."""
    data, size = FaceDataset(config.rec), config.embedding_size
    cache = TeacherCache(folder, "random", {}, len(data), size)
    rows = np.random.default_rng(0).standard_normal((len(data), size)).astype(np.float16)
    for flipped in (False, True):
        cache.write(np.arange(len(data)), np.full(len(data), flipped), rows)
    targets = CachedTeacherTargets(teacher, [], {}, data, world, config.eval_batch)
    targets.cache = cache
    return targets


def make_step(task: Task, config: Config, world: World) -> Callable[[], None]:
    """Returns a function that runs one training step of the task: losses, gradients and update."""
    parameters = [p for module in (task.backbone, task.header) for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=1e-4, momentum=0.9, fused=True)
    n, images = config.batch_size, len(FaceDataset(config.rec))
    generator = torch.Generator().manual_seed(0)
    pixels = normalise(torch.randint(0, 256, (n, SIZE, SIZE, 3), dtype=torch.uint8, generator=generator))
    labels = torch.randint(0, CLASSES, (n,), generator=generator)
    device_batch = pixels.to(world.device), labels.to(world.device)

    def step() -> None:
        indices = torch.randint(0, images, (n,), generator=generator)
        flipped = torch.rand(n, generator=generator) < 0.5
        batch = Batch(*device_batch, indices, flipped)
        with autocast(world, config.precision):
            loss = task(batch)["Loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def rates(steps: list[Callable[[], None]], images: int, turns: int, world: World) -> list[float]:
    """Returns the median images per second of each step; they take turns, so that drift affects all alike."""
    seconds: list[list[float]] = [[] for _ in steps]
    for turn in range(turns + 2):
        for step, times in zip(steps, seconds, strict=True):
            start = time.perf_counter()
            step()
            if world.device.type == "cuda":
                torch.cuda.synchronize()
            if turn >= 2:  # the first two are warm-up
                times.append(time.perf_counter() - start)
    return [images / median(times) for times in seconds]


def main() -> None:
    """Runs the benchmark and prints its table."""
    parser = CommandParser(__doc__.split("\n")[0])
    parser.add_argument("--config", default="config/config_PocketNetS128.py", help="the student (%(default)s)")
    parser.add_argument("--turns", type=int, default=7, help="measured steps of each (%(default)s)")
    parser.add_argument("changes", nargs="*", metavar="field=value", help="config field")
    args = parser.parse()
    config = load_config(args.config, ["rec=data/faces_demo", *args.changes])
    with init_distributed() as world, tempfile.TemporaryDirectory() as folder:
        backbone = to_device(build_backbone(config), world).train()
        header = to_device(ArcFace(config.embedding_size, CLASSES, config.s, config.m), world)
        teacher = NetworkTeacher(build_backbone(teacher_network_config(config)), world, config.teacher_precision)
        all_targets = TeacherTargets(teacher, []), cached_targets(Path(folder), teacher, config, world)
        tasks: list[Task] = [DistillTask(backbone, header, targets, config.w) for targets in all_targets]
        tasks.append(ArcFaceTask(backbone, header))
        uncached, cached, plain = rates(
            [make_step(task, config, world) for task in tasks], config.batch_size, args.turns, world
        )
    name = torch.cuda.get_device_name() if world.device.type == "cuda" else f"{os.cpu_count()} cores"
    print(f"{Path(args.config).stem}, teacher {config.teacher_network}, batches of {config.batch_size}, {name}\n")
    print(f"teacher at every step  {uncached:>9.1f} img/s")
    print(f"teacher cached         {cached:>9.1f} img/s   {cached / uncached:.2f}×")
    print(f"no teacher (ArcFace)   {plain:>9.1f} img/s   {plain / uncached:.2f}×")


if __name__ == "__main__":
    run_cli(main)
