"""Small trainings in the test's own process or in several processes that it starts."""

import os
import uuid

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from backbones.build import build_backbone
from config import load_config
from tests.helpers.paths import ROOT
from utils.datasets.training_data import load_training_data
from utils.distributed.data_parallel import wrap_ddp
from utils.distributed.process_group import World, to_device
from utils.losses.arcface import ArcFace
from utils.losses.header import make_header
from utils.training.arcface_task import ArcFaceTask, make_arcface_task
from utils.training.checkpointing.resume import resolve_resume
from utils.training.engine import train
from utils.training.prepare import prepare_training

CPU = World(0, 1, torch.device("cpu"))
SMALL = ["channel=4", "n_layers=4", "embedding_size=16", "batch_size=8", "workers=0", "save_initial=0", "eval_step=0"]


def small_config(folder, data, *overrides):
    """Returns the config of a network that trains within seconds and writes all files to the folder."""
    fields = [*SMALL, f"rec={data}", f"output={folder / 'out'}", f"log_dir={folder / 'logs'}", *overrides]
    return load_config(ROOT / "config" / "config_demo.py", fields)


def small_task(config, num_classes, world=CPU, header=None, task_type=ArcFaceTask):
    """Returns an untrained task of the config."""
    torch.manual_seed(config.seed)
    backbone = to_device(build_backbone(config), world)
    header = header or to_device(ArcFace(config.embedding_size, num_classes, config.s, config.m), world)
    return task_type(wrap_ddp(backbone, world), wrap_ddp(header, world))


def train_small(config, verify=None, world=CPU, task_type=ArcFaceTask):
    """Trains, resuming from config.output. Returns the last step and the task."""
    loader, num_classes = load_training_data(config, world)
    resume_point = resolve_resume(config, task_type, loader, world)
    task = small_task(config, num_classes, world, task_type=task_type)
    return train(task, loader, config, world, verify, resume_point), task


def spawn_ranks(function, folder, *args, size=2):
    """Calls function(world, folder, *args) in `size` processes, and asserts that all of them exit with 0."""
    context = mp.get_context("forkserver")  # slow imports happen only once
    # Optimizers import torch._dynamo.
    context.set_forkserver_preload(["torch._dynamo", "tests.helpers.training"])
    folder.mkdir(exist_ok=True)
    rendezvous_file = str(folder / f"meet-{uuid.uuid4().hex}")
    environment = dict(os.environ)  # passed on, because multiprocessing's fork server keeps the one of its start
    ranks = [environment | {"RANK": str(r), "WORLD_SIZE": str(size), "LOCAL_RANK": str(r)} for r in range(size)]
    workers = [
        context.Process(target=_join_group, args=(function, rendezvous_file, rank, folder, *args)) for rank in ranks
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(100)
    assert [worker.exitcode for worker in workers] == [0] * size


def _join_group(function, rendezvous_file, environment, folder, *args):
    os.environ.clear()
    os.environ.update(environment)
    rank, size = int(environment["RANK"]), int(environment["WORLD_SIZE"])
    torch.set_num_threads(1)
    store = dist.FileStore(rendezvous_file, size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    function(World(rank, size, torch.device("cpu")), folder, *args)
    dist.destroy_process_group()


def train_prepared(world, folder, data, *overrides):
    """Trains as train.py does, with a batch of 4 in each process, resuming from config.output."""
    config = small_config(folder, data, "batch_size=4", *overrides)
    torch.manual_seed(config.seed)
    run = prepare_training(build_backbone, make_arcface_task, config, world)
    resume_point = resolve_resume(config, ArcFaceTask, run.loader, world)
    train(run.make_task(resume_point), run.loader, config, world, resume_point=resume_point)


def train_sharded(world, folder, data, *overrides):
    """Trains for two epochs with the header of the config, such as header=sharded."""
    config = small_config(folder, data, "batch_size=4", "num_epoch=2", *overrides)
    loader, num_classes = load_training_data(config, world)
    resume_point = resolve_resume(config, ArcFaceTask, loader, world)
    if resume_point.state and config.header == "sharded":  # the other ranks are sent their shard alone
        assert ("header" in resume_point.state) == ("header" in resume_point.state["optimizer"]) == world.is_main
    backbone = small_task(config, num_classes, world).backbone
    header = make_header(config, num_classes, world)
    train(ArcFaceTask(backbone, header), loader, config, world, resume_point=resume_point)
