"""The teacher's embeddings of a batch: computed, or read from a cache."""

from pathlib import Path

import numpy as np
import torch
from easydict import EasyDict
from torch import Tensor

from utils.datasets.face_dataset import FaceDataset
from utils.distillation.cache import Identity, TeacherCache, embed_and_cache, fill, fingerprint_of_teacher
from utils.distillation.teacher import Teacher, teacher_description
from utils.distributed.process_group import World
from utils.logs.run_log import log
from utils.training.task import Batch

Caches = dict[Path, TeacherCache]  # by the teacher's file


class TeacherTargets:
    """What each epoch's teacher says of a batch."""

    def __init__(self, teacher: Teacher, files: list[Path]) -> None:
        """files: the teacher's for each epoch."""
        self.teacher = teacher
        self.files = files
        self.active_checkpoint: Path | None = None

    def on_epoch_start(self, epoch: int) -> None:
        """Changes the teacher where another serves in this epoch."""
        if self.files[epoch] != self.active_checkpoint:
            self.active_checkpoint = self.files[epoch]
            self.teacher.load(self.active_checkpoint)

    def __call__(self, batch: Batch) -> Tensor:
        """The teacher's embeddings (B, D) float32, of length 1."""
        return self.teacher(batch.images)


class CachedTeacherTargets(TeacherTargets):
    """The same, each image and its mirror image put to a teacher once; what it said is kept on disk as float16.

    A whole epoch with a teacher leaves nothing to ask it, so it pays from the second on, or in the next run.
    """

    def __init__(
        self, teacher: Teacher, files: list[Path], caches: Caches, data: FaceDataset, world: World, batch_size: int,
        skip_bad: bool = False,
    ) -> None:  # fmt: skip
        """caches: of each file, for the images of the data; batch_size: images at once where a cache is completed."""
        super().__init__(teacher, files)
        self.caches = caches
        self.cache: TeacherCache
        self.data = data
        self.world = world
        self.batch_size = batch_size
        self.skip_bad = skip_bad

    def on_epoch_start(self, epoch: int) -> None:
        """Changes the teacher, or completes what is kept of it by the images that the epochs before left out."""
        stays = epoch > 0 and self.files[epoch - 1] == self.files[epoch]  # also where a run goes on
        super().on_epoch_start(epoch)
        self.cache = self.caches[self.files[epoch]]
        if stays:
            fill(self.cache, self.teacher, self.data, self.world, self.batch_size, skip_bad=self.skip_bad)

    def __call__(self, batch: Batch) -> Tensor:
        """The teacher's embeddings (B, D) float32, of length 1 to float16 accuracy."""
        indices, flipped = batch.indices.numpy(), batch.flipped.numpy()
        embeddings, known = self.cache.read(indices, flipped)
        if not known.all():
            unknown = np.flatnonzero(~known)
            images = batch.images[unknown]
            embeddings[unknown] = embed_and_cache(self.cache, self.teacher, images, indices[unknown], flipped[unknown])
        return torch.from_numpy(embeddings).to(batch.images.device, non_blocking=True).float()


def open_caches(config: EasyDict, files: list[Path], data: FaceDataset) -> Caches:
    """The caches in config.teacher_cache of the teacher's files, for these data. Says what is in them."""
    of_data, teacher, caches = data.fingerprint, teacher_description(config), {}
    for path in dict.fromkeys(files):
        of_teacher = fingerprint_of_teacher(path)
        identity: Identity = {"teacher": teacher, "teacher_sha256": of_teacher, "data_sha256": of_data}
        cache = TeacherCache(Path(config.teacher_cache), path.stem, identity, len(data), config.embedding_size)
        log.info(f"Teacher cache of {path.name}: {cache.path}.*, {100 * cache.filled():.0f} % filled")
        caches[path] = cache
    if len(caches) == len(files) > 1:
        log.warning("config teacher_cache: every epoch has another teacher, so it saves time in later runs alone")
    return caches
