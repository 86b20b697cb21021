"""Training with a teacher: images a second with it asked at every step, and with its embeddings kept.

    python benchmarks/distillation.py [--config FILE] [teacher_network=iresnet50] [field=value …]

The two take turns in one process, on one made-up batch; the step without a teacher is there to compare. The cache is
full, as it is from the second epoch on, and as large as the data in rec. Weights are random: speed does not depend on
them.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

if not __package__:  # run as a script: the modules are found from the project's folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import torch
from easydict import EasyDict

from backbones import build_backbone
from config import CommandParser, load_config
from utils.datasets.face_dataset import FaceDataset
from utils.datasets.transforms import SIZE, normalise
from utils.distillation.cache import TeacherCache
from utils.distillation.targets import CachedTeacherTargets, TeacherTargets
from utils.distillation.task import DistillTask
from utils.distillation.teacher import NetworkTeacher, Teacher, teacher_network
from utils.distributed.process_group import World, autocast, init_distributed, to_device
from utils.errors import run_cli
from utils.losses.arcface import ArcFace
from utils.training.arcface_task import ArcFaceTask
from utils.training.task import Batch, Task

CLASSES = 1000


def cached_lessons(folder: Path, teacher: Teacher, config: EasyDict, world: World) -> CachedTeacherTargets:
    """Lessons from a full cache of made-up embeddings for the images in config.rec."""
    data, size = FaceDataset(config.rec), config.embedding_size
    cache = TeacherCache(folder, "made-up", {}, len(data), size)
    rows = np.random.default_rng(0).standard_normal((len(data), size)).astype(np.float16)
    for flipped in (False, True):
        cache.write(np.arange(len(data)), np.full(len(data), flipped), rows)
    targets = CachedTeacherTargets(teacher, [], {}, data, world, config.eval_batch)
    targets.cache = cache
    return targets


def stepping(task: Task, config: EasyDict, world: World) -> Callable[[], None]:
    """A training step: losses, gradients, update."""
    parameters = [p for module in (task.backbone, task.header) for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=1e-4, momentum=0.9, fused=True)
    n, images = config.batch_size, len(FaceDataset(config.rec))
    generator = torch.Generator().manual_seed(0)
    pixels = normalise(torch.randint(0, 256, (n, SIZE, SIZE, 3), dtype=torch.uint8, generator=generator))
    labels = torch.randint(0, CLASSES, (n,), generator=generator)
    on_device = pixels.to(world.device), labels.to(world.device)

    def step() -> None:
        indices = torch.randint(0, images, (n,), generator=generator)
        flipped = torch.rand(n, generator=generator) < 0.5
        batch = Batch(*on_device, indices, flipped)
        with autocast(world, config.precision):
            loss = task(batch)["Loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def rates(steps: list[Callable[[], None]], images: int, turns: int, world: World) -> list[float]:
    """Median images a second of each, taken in turn so that a machine that drifts treats all alike."""
    seconds: list[list[float]] = [[] for _ in steps]
    for turn in range(turns + 2):
        for step, taken in zip(steps, seconds, strict=True):
            started = time.perf_counter()
            step()
            if world.device.type == "cuda":
                torch.cuda.synchronize()
            if turn >= 2:  # the first two warm up
                taken.append(time.perf_counter() - started)
    return [images / median(taken) for taken in seconds]


def main() -> None:
    """The command line."""
    parser = CommandParser(__doc__.split("\n")[0])
    parser.add_argument("--config", default="config/config_PocketNetS128.py", help="the student (%(default)s)")
    parser.add_argument("--turns", type=int, default=7, help="steps of each that count (%(default)s)")
    parser.add_argument("changes", nargs="*", metavar="field=value", help="a change of the config")
    args = parser.parse()
    config = load_config(args.config, ["rec=data/faces_demo", *args.changes])
    with init_distributed() as world, tempfile.TemporaryDirectory() as folder:
        backbone = to_device(build_backbone(config), world).train()
        header = to_device(ArcFace(config.embedding_size, CLASSES, config.s, config.m), world)
        teacher = NetworkTeacher(build_backbone(teacher_network(config)), world, config.teacher_precision)
        asked, kept = TeacherTargets(teacher, []), cached_lessons(Path(folder), teacher, config, world)
        tasks: list[Task] = [DistillTask(backbone, header, targets, config.w) for targets in (asked, kept)]
        tasks.append(ArcFaceTask(backbone, header))
        uncached, cached, plain = rates(
            [stepping(task, config, world) for task in tasks], config.batch_size, args.turns, world
        )
    name = torch.cuda.get_device_name() if world.device.type == "cuda" else f"{os.cpu_count()} cores"
    print(f"{Path(args.config).stem}, teacher {config.teacher_network}, batches of {config.batch_size}, {name}\n")
    print(f"teacher at every step  {uncached:>9.1f} img/s")
    print(f"teacher cached         {cached:>9.1f} img/s   {cached / uncached:.2f}×")
    print(f"no teacher (ArcFace)   {plain:>9.1f} img/s   {plain / uncached:.2f}×")


if __name__ == "__main__":
    run_cli(main)
