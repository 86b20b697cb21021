"""Knowledge distillation: the task that adds a teacher's embeddings to ArcFace (paper, Section III-C)."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from easydict import EasyDict
from torch import Tensor, nn

from utils.dataset import FaceDataset
from utils.distributed import World
from utils.losses import header_loss
from utils.run_log import log
from utils.task import Batch, Task
from utils.teacher import Teacher, describe
from utils.teacher_cache import Identity, TeacherCache, ask, fill, fingerprint_of_teacher


def distillation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """The mean, over all elements, of the squared differences of the embeddings at length 1. Never in half precision.

    Args:
        student: (B, D) embeddings of any length.
        teacher: (B, D) embeddings of length 1.
    """
    student = student.to(torch.promote_types(student.dtype, torch.float32))
    return F.mse_loss(F.normalize(student, dim=1), teacher)


Caches = dict[Path, TeacherCache]  # by the teacher's file


class Lessons:
    """What each epoch's teacher says of a batch."""

    def __init__(self, teacher: Teacher, files: list[Path]) -> None:
        """files: the teacher's for each epoch."""
        self.teacher = teacher
        self.files = files
        self.serving: Path | None = None

    def start_epoch(self, epoch: int) -> None:
        """Changes the teacher where another serves in this epoch."""
        if self.files[epoch] != self.serving:
            self.serving = self.files[epoch]
            self.teacher.load(self.serving)

    def __call__(self, batch: Batch) -> Tensor:
        """The teacher's embeddings (B, D) float32, of length 1."""
        return self.teacher(batch.images)


class CachedLessons(Lessons):
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

    def start_epoch(self, epoch: int) -> None:
        """Changes the teacher, or completes what is kept of it by the images that the epochs before left out."""
        stays = epoch > 0 and self.files[epoch - 1] == self.files[epoch]  # also where a run goes on
        super().start_epoch(epoch)
        self.cache = self.caches[self.files[epoch]]
        if stays:
            fill(self.cache, self.teacher, self.data, self.world, self.batch_size, skip_bad=self.skip_bad)

    def __call__(self, batch: Batch) -> Tensor:
        """The teacher's embeddings (B, D) float32, of length 1 to float16 accuracy."""
        indices, mirrored = batch.indices.numpy(), batch.mirrored.numpy()
        embeddings, known = self.cache.read(indices, mirrored)
        if not known.all():
            unknown = np.flatnonzero(~known)
            images = batch.images[unknown]
            embeddings[unknown] = ask(self.cache, self.teacher, images, indices[unknown], mirrored[unknown])
        return torch.from_numpy(embeddings).to(batch.images.device, non_blocking=True).float()


def open_caches(config: EasyDict, files: list[Path], data: FaceDataset) -> Caches:
    """The caches in config.teacher_cache of the teacher's files, for these data. Says what is in them."""
    of_data, teacher, caches = data.fingerprint, describe(config), {}
    for path in dict.fromkeys(files):
        of_teacher = fingerprint_of_teacher(path)
        identity: Identity = {"teacher": teacher, "teacher_sha256": of_teacher, "data_sha256": of_data}
        cache = TeacherCache(Path(config.teacher_cache), path.stem, identity, len(data), config.embedding_size)
        log.info(f"Teacher cache of {path.name}: {cache.path}.*, {100 * cache.filled():.0f} % filled")
        caches[path] = cache
    if len(caches) == len(files) > 1:
        log.warning("config teacher_cache: every epoch has another teacher, so it saves time in later runs alone")
    return caches


class DistillTask(Task):
    """ArcFace plus w times the distillation loss, both of the student's embedding of the same batch."""

    def __init__(self, backbone: nn.Module, header: nn.Module, lessons: Lessons, w: float) -> None:
        super().__init__(backbone, header)
        self.lessons = lessons
        self.w = w

    def start_epoch(self, epoch: int) -> None:
        """Takes the teacher of the epoch."""
        self.lessons.start_epoch(epoch)

    def state(self) -> dict[str, Any]:
        """Which teacher serves: for people, the epoch decides on it."""
        return {"teacher": str(self.lessons.serving)}

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """{"Loss": ArcLoss + w · MSE, "ArcLoss", "MSE"}."""
        embeddings = self.backbone(batch.images)  # (B, D)
        arc_loss = header_loss(self.header, embeddings, batch.labels)
        mse = distillation_loss(embeddings, self.lessons(batch))
        return {"Loss": arc_loss + self.w * mse, "ArcLoss": arc_loss, "MSE": mse}
