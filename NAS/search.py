"""Runs the architecture search: NAS/search.sh, or python NAS/search.py [--config FILE] [field=value …]

The default config is NAS/config.py. Writes to config.output: search.log, genotypes.jsonl (a line per epoch), cells.png
and alphas.png (pictures/ has those of all epochs), and {step}supernet.pth. NAS/derive.py makes a config from it.
"""

import sys
from pathlib import Path

if not __package__:  # run as a script: this folder is first on the path; use the project's instead
    sys.path[0] = str(Path(__file__).resolve().parents[1])

if __name__ == "__main__":  # keeps a scheduler's signal from ending the slow imports below
    from utils.distributed.signals import ignore_checkpoint_signals

    ignore_checkpoint_signals()

import numpy as np

from config import (
    CommandParser,
    add_config_arguments,
    collect_overrides,
    ensure_output_folder,
    load_config,
    require_data,
    save_config,
    warn_unused_fields,
)
from config.base import Config
from NAS.data import Halves, open_search_data, split_halves
from NAS.supernet import Supernet
from NAS.task import SearchTask
from utils.datasets.image_dataset import ImageDataset
from utils.datasets.sampler import EpochSampler, ListSampler
from utils.datasets.shared_buffers import HostBatch
from utils.datasets.shared_loader import SharedMemoryLoader
from utils.datasets.training_data import training_loader
from utils.distributed.collectives import run_on_all, run_on_main
from utils.distributed.data_parallel import wrap_ddp
from utils.distributed.process_group import World, to_device
from utils.distributed.restart import restartable
from utils.errors import UserError, run_cli
from utils.logs.logger import log
from utils.training.checkpointing.resume import ResumePoint, already_finished_message, resolve_resume
from utils.training.engine import train
from utils.training.prepare import PreparedRun
from utils.training.session import training_session
from utils.training.task import Task

DEFAULT_CONFIG = Path(__file__).with_name("config.py")


def main() -> None:
    """Runs the command."""
    parser = CommandParser("Search for the cells of a network.")
    add_config_arguments(parser, resume=True)
    args = parser.parse()
    config = load_config(args.config or DEFAULT_CONFIG, collect_overrides(args))
    check_config(config)
    ensure_output_folder(config, "output")
    ensure_output_folder(config, "log_dir")

    with training_session(config, "search.log", "Search: ") as world:
        warn_unused_fields(config, "search")
        run = prepare_search(config, world)
        resume_point = resolve_resume(config, SearchTask, run.loader, world)
        if resume_point.progress.is_finished(config):
            log.info(already_finished_message(config))
            return
        task = run.make_task(resume_point)
        step = train(task, run.loader, config, world, resume_point=resume_point, on_begin=lambda: save_config(config))
        log.info(f"Done: {step} steps; make a config from it with python NAS/derive.py --config … --name NAME")


def check_config(config: Config) -> None:
    """Raises UserError if the architecture search cannot run with this config."""
    require_data(config)
    if config.optimizer != "sgd":
        raise UserError(f"config optimizer: {config.optimizer}, but the search needs sgd, whose step it unrolls")
    if config.precision == "fp16":
        raise UserError("config precision: the search runs in fp32 or bf16; fp16 is too coarse")
    # The tail's batch norm has one value per image, and a single value has no variance.
    if config.batch_size == 1:
        raise UserError("config batch_size: 1, but the supernet's batch norm needs 2 images or more")
    if config.search_eval == 1:
        raise UserError("config search_eval: 1, but batch norm needs 2 images or more", fix="0 measures no accuracies")


def prepare_search(config: Config, world: World) -> PreparedRun:
    """Returns the run that searches on both halves of the data. Collective: call on all ranks. Raises UserError."""
    data, num_classes = run_on_all(world, lambda: open_search_data(config))
    halves = split_halves(data.label_values.astype(np.int64), config.seed)
    loader, val_loader = (half_loader(data, half, config, world) for half in (halves.train, halves.val))

    def make_task(resume_point: ResumePoint) -> Task:
        net = Supernet(
            config.channel, config.n_layers, config.n_nodes, config.stem_multiplier, num_classes,
            config.embedding_size, config.search_space,
        )  # fmt: skip
        for alpha in net.alphas():
            alpha.requires_grad_(False)
        main_samples: list[dict[str, HostBatch]] = []
        run_on_main(world, lambda: main_samples.append(sample_halves(data, halves, config)))
        samples = main_samples[0] if main_samples else {}
        return SearchTask(wrap_ddp(to_device(net, world), world), val_loader, samples, config, world)

    return PreparedRun(loader, num_classes, make_task)


def half_loader(data: ImageDataset, indices: np.ndarray, config: Config, world: World) -> SharedMemoryLoader:
    """Returns this rank's loader of one half, the images at `indices` of the data set."""
    sampler = EpochSampler(indices, config.batch_size, world.rank, world.size, config.seed)
    return training_loader(data, sampler, config, world)


def sample_halves(data: ImageDataset, halves: Halves, config: Config) -> dict[str, HostBatch]:
    """Draws and reads the images of each half, {"train": …, "val": …}, for the accuracies after each epoch.

    The draw depends on config.seed only. Raises UserError for an image that cannot be read.
    """
    rng = np.random.default_rng(config.seed)
    samples = {}
    for name, indices in (("train", halves.train), ("val", halves.val)):
        chosen = np.sort(rng.choice(indices, min(config.search_eval, len(indices)), replace=False))
        if len(chosen):
            loader = SharedMemoryLoader(data, ListSampler(chosen, len(chosen)), skip_bad=config.on_bad_image == "skip")
            (batch,) = loader.iter_epoch(0)
            samples[name] = batch
    return samples


if __name__ == "__main__":
    run_cli(restartable(main))
