"""The training data of a config: opened, checked against it, and loaded in batches."""

import numpy as np
from easydict import EasyDict

from utils.datasets.face_dataset import FaceDataset
from utils.datasets.sampler import BatchSampler, EpochSampler
from utils.datasets.shared_loader import Loader, S
from utils.distributed.collectives import all_gather_rows, run_on_all, run_on_main
from utils.distributed.process_group import World
from utils.errors import UserError
from utils.logs.run_log import log


def load_training_data(config: EasyDict, world: World) -> tuple[Loader, int]:
    """The loader of this process, and the number of classes. Raises UserError where config and files disagree."""
    num_classes = run_on_main(world, lambda: _checked_classes(config))
    dataset = run_on_all(world, lambda: FaceDataset(config.rec))
    _check_copies(dataset, world)
    sampler = EpochSampler(len(dataset), config.batch_size, world.rank, world.size, config.seed)
    return training_loader(dataset, sampler, config, world), num_classes


def training_loader(dataset: S, sampler: BatchSampler, config: EasyDict, world: World) -> Loader[S]:
    """The loader of images that are learned from, as the config says."""
    pin, skip_bad = world.device.type == "cuda", config.on_bad_image == "skip"
    return Loader(dataset, sampler, config.workers, pin, skip_bad, config.timeout)


def _check_copies(dataset: FaceDataset, world: World) -> None:
    """Raises UserError unless all processes, perhaps on several machines, have as many images in as many bytes."""
    mine = np.array([[len(dataset), dataset.reader.rec.stat().st_size]])
    if len(found := np.unique(all_gather_rows(mine, world), axis=0)) > 1:
        sizes = " and ".join(f"{images} images in {size:,} bytes" for images, size in found)
        raise UserError(f"config rec: the copies of {dataset.reader.rec} are not the same: {sizes}; copy one to all")


def _checked_classes(config: EasyDict) -> int:
    """config.num_classes, or the files' count where that is 0, once every label has been found to fit."""
    dataset = FaceDataset(config.rec)
    in_files = dataset.count_classes()
    num_classes = config.num_classes or in_files
    dataset.check_labels(num_classes)
    in_files = max(in_files, int(dataset.label_values.max()) + 1)
    if num_classes > in_files:
        raise UserError(
            f"config num_classes: {num_classes}, but {config.rec} holds {in_files} identities; type num_classes=0 to "
            f"take the files' count, or num_classes={in_files}"
        )
    log.info(f"Data: {len(dataset)} images of {in_files} identities in {config.rec}")
    if dataset.n_missing:
        log.warning(f"{dataset.reader.idx}: {dataset.n_missing} of the images that record 0 announces are not there")
    dataset.check_identities(num_classes)
    if config.num_image not in (0, len(dataset)):
        log.warning(f"config num_image: {config.num_image}, but the files hold {len(dataset)}: the files count")
    return num_classes
