"""The teacher's embeddings of a batch: computed, or read from a cache."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from config.base import Config
from utils.datasets.image_dataset import ImageDataset
from utils.distillation.cache import Identity, TeacherCache, embed_and_cache, fill_cache, teacher_fingerprint
from utils.distillation.teacher import Teacher, teacher_description
from utils.distributed.process_group import World, to_device_async
from utils.logs.logger import log
from utils.training.task import Batch

Caches = dict[Path, TeacherCache]  # by teacher file


class TeacherTargets:
    """Computes the embeddings of each epoch's teacher."""

    def __init__(self, teacher: Teacher, files: list[Path]) -> None:
        """files: teacher file of each epoch."""
        self.teacher = teacher
        self.files = files
        self.active_checkpoint: Path | None = None

    def on_epoch_start(self, epoch: int) -> None:
        """Loads the teacher file of the epoch unless it is loaded already."""
        if self.files[epoch] != self.active_checkpoint:
            self.active_checkpoint = self.files[epoch]
            self.teacher.load(self.active_checkpoint)

    def __call__(self, batch: Batch) -> Tensor:
        """Returns the teacher's embeddings (B, D) float32 of length 1."""
        return self.teacher(batch.images)


class CachedTeacherTargets(TeacherTargets):
    """Reads the teacher's embeddings from a disk cache in float16; computes the missing ones once and stores them.

    The first epoch with a teacher fills its cache, so it saves time from the second such epoch on, or in the next run.
    """

    def __init__(
        self, teacher: Teacher, files: list[Path], caches: Caches, data: ImageDataset, world: World, batch_size: int,
        skip_bad: bool = False,
    ) -> None:  # fmt: skip
        """caches: cache of each teacher file. batch_size: images per forward pass when an epoch completes a cache."""
        super().__init__(teacher, files)
        self.caches = caches
        self.cache: TeacherCache
        self.data = data
        self.world = world
        self.batch_size = batch_size
        self.skip_bad = skip_bad

    def on_epoch_start(self, epoch: int) -> None:
        """Loads the teacher of the epoch; if it is that of the epoch before, embeds the images dropped until now."""
        same_teacher = epoch > 0 and self.files[epoch - 1] == self.files[epoch]  # also true for a resumed run
        super().on_epoch_start(epoch)
        self.cache = self.caches[self.files[epoch]]
        if same_teacher:
            fill_cache(self.cache, self.teacher, self.data, self.world, self.batch_size, skip_bad=self.skip_bad)

    def __call__(self, batch: Batch) -> Tensor:
        """Returns the teacher's embeddings (B, D) float32, of length 1 to float16 accuracy."""
        indices, flipped = batch.indices.numpy(), batch.flipped.numpy()
        embeddings, cached = self.cache.read(indices, flipped)
        if not cached.all():
            missing = np.flatnonzero(~cached)
            images = batch.images[missing]
            embeddings[missing] = embed_and_cache(self.cache, self.teacher, images, indices[missing], flipped[missing])
        return to_device_async(torch.from_numpy(embeddings), batch.images.device).float()


def open_caches(config: Config, files: list[Path], data: ImageDataset) -> Caches:
    """Opens a cache in config.teacher_cache for each teacher file on these data, and logs how far it is filled.

    Raises UserError if a cache cannot be created or is damaged.
    """
    fingerprint, teacher, caches = data.fingerprint, teacher_description(config), {}
    for path in dict.fromkeys(files):
        identity: Identity = {
            "teacher": teacher,
            "teacher_sha256": teacher_fingerprint(path),
            "data_sha256": fingerprint,
        }
        cache = TeacherCache(Path(config.teacher_cache), path.stem, identity, len(data), config.embedding_size)
        log.info(f"Teacher cache of {path.name}: {cache.path}.*, {100 * cache.filled():.0f} % filled")
        caches[path] = cache
    if len(caches) == len(files) > 1:
        log.warning("config teacher_cache: every epoch has another teacher, so it saves time only in later runs")
    return caches
