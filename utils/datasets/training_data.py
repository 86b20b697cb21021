"""Opens the training data of a config, checks it against the config, and builds its loader."""

from collections.abc import Callable
from functools import partial

import numpy as np

from config.base import Config
from utils.datasets.image_dataset import ImageDataset, open_dataset
from utils.datasets.label_check import LabelCheck
from utils.datasets.sampler import BatchSampler, EpochSampler
from utils.datasets.shared_loader import SharedMemoryLoader, SourceT
from utils.distributed.collectives import all_gather_rows, run_on_all, run_on_main
from utils.distributed.process_group import World
from utils.errors import UserError
from utils.logs.logger import log


def load_training_data(config: Config, world: World) -> tuple[SharedMemoryLoader, int]:
    """Returns this rank's loader and the number of classes. Collective: call on all ranks.

    Raises UserError where config and files disagree. Labels that take long to read are checked later, in a thread of
    rank 0, which the loader starts with its first epoch: `loader.label_check` has the result.
    """
    dataset = run_on_all(world, lambda: open_dataset(config))
    _check_same_on_all_ranks(dataset, world)
    num_classes, labels_are_checked = run_on_main(world, lambda: _check_data(config, dataset))
    dataset.num_classes = num_classes
    sampler = EpochSampler(len(dataset), config.batch_size, world.rank, world.size, config.seed)
    loader = training_loader(dataset, sampler, config, world)
    if world.is_main and not labels_are_checked:
        loader.label_check = LabelCheck(partial(_check_labels, dataset, num_classes))
    return loader, num_classes


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


def _check_data(config: Config, dataset: ImageDataset) -> tuple[int, bool]:
    """Returns the number of classes, and whether the labels are checked: not where that takes long."""
    num_classes, n_identities = _count_classes(config, dataset)
    labels_are_checked = not dataset.labels_take_long
    if labels_are_checked:
        dataset.check_labels(num_classes)
    log.info(f"Data: {len(dataset)} images of {n_identities} identities in {config.rec}")
    for warning in dataset.warnings():
        log.warning(warning)
    if labels_are_checked:
        dataset.check_identities(num_classes)
    else:
        log.info("The labels of all images are read for the first time: they are checked while the run trains")
    if config.num_image not in (0, len(dataset)):
        log.warning(
            f"config num_image: {config.num_image}, but the files hold {len(dataset)}: the files' count is used"
        )
    return num_classes, labels_are_checked


def _count_classes(config: Config, dataset: ImageDataset) -> tuple[int, int]:
    """Returns config.num_classes, or the files' count where that is 0, and the number of identities in the files.

    Raises UserError if the files have fewer identities than the config says.
    """
    n_identities = dataset.count_classes()
    if config.num_classes <= n_identities:
        return config.num_classes or n_identities, n_identities
    dataset.check_labels(config.num_classes)
    n_identities = max(n_identities, int(dataset.label_values.max()) + 1)
    if config.num_classes > n_identities:
        raise UserError(
            f"config num_classes: {config.num_classes}, but {config.rec} holds {n_identities} identities",
            fix=f"type num_classes=0 to take the files' count, or num_classes={n_identities}",
        )
    return config.num_classes, n_identities


def _check_labels(dataset: ImageDataset, num_classes: int, on_chunk: Callable[[], None]) -> None:
    """Reads and checks all labels. Raises UserError. on_chunk: see `ImageDataset.read_labels`."""
    dataset.read_labels(on_chunk)
    dataset.check_labels(num_classes)
    dataset.check_identities(num_classes)
    log.info(f"The labels of all {len(dataset)} images are right")
