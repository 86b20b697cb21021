"""Fills the cache of a teacher's embeddings: python -m utils.fill_teacher_cache [--multi-step] [--config FILE] …

Writes them to config.teacher_cache, where ./train_kd.sh with the same config reads them. After an interruption the same
command computes only those still missing.
"""

import sys
from pathlib import Path

if not __package__:  # run as a script: import modules from the project folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from backbones.build import build_backbone
from config import ensure_output_folder, parse_command, require_data, warn_unused_fields
from utils.datasets.image_dataset import open_dataset
from utils.datasets.sampler import EpochSampler
from utils.distillation.cache import fill_cache
from utils.distillation.schedule import prepare_teacher
from utils.distillation.targets import open_caches
from utils.distributed.collectives import main_process_first
from utils.distributed.runtime_errors import init_run
from utils.errors import UserError, run_cli
from utils.logs.logger import init_logging, log
from utils.training.checkpointing.progress import compute_epoch_end_steps


def main() -> None:
    """Runs the command."""
    description = "Compute the teacher's embeddings of all training images."
    config = parse_command(description, switches=["multi_step"], distillation=True)
    require_data(config)
    if not config.teacher_cache:
        raise UserError(
            "config teacher_cache: is empty", fix="name the folder for the embeddings: teacher_cache=FOLDER"
        )
    folder = ensure_output_folder(config, "teacher_cache")
    with init_run(config) as world:
        init_logging(folder / "fill.log" if world.is_main else None)
        warn_unused_fields(config, "train_kd")
        data = open_dataset(config)
        sampler = EpochSampler(len(data), config.batch_size, world.rank, world.size, config.seed)
        teacher, files = prepare_teacher(config, world, compute_epoch_end_steps(config, sampler), build_backbone)
        caches = main_process_first(world, lambda: open_caches(config, files, data))
        for path, cache in caches.items():
            teacher.load(path)
            skip_bad = config.on_bad_image == "skip"
            images = fill_cache(
                cache, teacher, data, world, config.eval_batch, config.workers, skip_bad, config.timeout
            )
            log.info(f"{path}: embedded {images} images and their flips{' (by this process)' * (world.size > 1)}")


if __name__ == "__main__":
    run_cli(main)
