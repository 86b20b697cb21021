"""Opens the training data of a config, checks it against the config, and builds its loader."""

import numpy as np

from config.base import Config
from utils.datasets.image_dataset import ImageDataset, open_dataset
from utils.datasets.sampler import BatchSampler, EpochSampler
from utils.datasets.shared_loader import SharedMemoryLoader, SourceT
from utils.distributed.collectives import all_gather_rows, run_on_all, run_on_main
from utils.distributed.process_group import World
from utils.errors import UserError
from utils.logs.logger import log


def load_training_data(config: Config, world: World) -> tuple[SharedMemoryLoader, int]:
    """Returns this rank's loader and the number of classes. Collective: call on all ranks.

    Raises UserError where config and files disagree.
    """
    num_classes = run_on_main(world, lambda: _checked_num_classes(config))
    dataset = run_on_all(world, lambda: open_dataset(config))
    _check_same_on_all_ranks(dataset, world)
    sampler = EpochSampler(len(dataset), config.batch_size, world.rank, world.size, config.seed)
    return training_loader(dataset, sampler, config, world), num_classes


def training_loader(
    dataset: SourceT, sampler: BatchSampler, config: Config, world: World
) -> SharedMemoryLoader[SourceT]:
    """Returns a loader with the config's workers, on_bad_image and timeout, pinning memory where ranks use GPUs."""
    pin, skip_bad = world.device.type == "cuda", config.on_bad_image == "skip"
    return SharedMemoryLoader(dataset, sampler, config.workers, pin, skip_bad, config.timeout)


def _check_same_on_all_ranks(dataset: ImageDataset, world: World) -> None:
    """Raises UserError unless all ranks, possibly on several machines, have the same image count and file size."""
    local = np.array([[len(dataset), dataset.n_bytes]])
    if len(distinct := np.unique(all_gather_rows(local, world), axis=0)) > 1:
        sizes = " and ".join(f"{images} images in {size:,} bytes" for images, size in distinct)
        raise UserError(f"config rec: the copies of {dataset.name} are not the same: {sizes}", fix="copy one to all")


def _checked_num_classes(config: Config) -> int:
    """Returns config.num_classes, or the files' count where that is 0, after checking every label against it."""
    dataset = open_dataset(config)
    n_identities = dataset.count_classes()
    num_classes = config.num_classes or n_identities
    dataset.check_labels(num_classes)
    n_identities = max(n_identities, int(dataset.label_values.max()) + 1)
    if num_classes > n_identities:
        raise UserError(
            f"config num_classes: {num_classes}, but {config.rec} holds {n_identities} identities",
            fix=f"type num_classes=0 to take the files' count, or num_classes={n_identities}",
        )
    log.info(f"Data: {len(dataset)} images of {n_identities} identities in {config.rec}")
    for warning in dataset.warnings():
        log.warning(warning)
    dataset.check_identities(num_classes)
    if config.num_image not in (0, len(dataset)):
        log.warning(
            f"config num_image: {config.num_image}, but the files hold {len(dataset)}: the files' count is used"
        )
    return num_classes
