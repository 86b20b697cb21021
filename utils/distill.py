"""Knowledge distillation: the task that adds a teacher's embeddings to ArcFace (paper, Section III-C)."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from easydict import EasyDict
from torch import Tensor, nn

from utils.dataset import FaceDataset
from utils.distributed import World
from utils.run_log import log
from utils.task import Batch
from utils.teacher import Teacher, is_onnx, teacher_network
from utils.teacher_cache import Identity, TeacherCache, fill, fingerprint_of_data, fingerprint_of_teacher


def distillation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """The mean, over all elements, of the squared differences of the embeddings at length 1. Never in half precision.

    Args:
        student: (B, D) embeddings of any length.
        teacher: (B, D) embeddings of length 1.
    """
    student = student.to(torch.promote_types(student.dtype, torch.float32))
    return F.mse_loss(F.normalize(student, dim=1), teacher)


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

    def __init__(self, teacher: Teacher, files: list[Path], config: EasyDict, data: FaceDataset, world: World) -> None:
        super().__init__(teacher, files)
        self.open = cache_opener(config, data)
        self.data = data
        self.world = world
        self.batch_size = config.batch_size
        self.cache: TeacherCache | None = None

    def start_epoch(self, epoch: int) -> None:
        """Changes the teacher, or completes what is kept of it by the images that the epochs before left out."""
        changes = self.files[epoch] != self.serving
        super().start_epoch(epoch)
        if changes or self.cache is None:
            self.cache = self.open(self.files[epoch])
            log.info(f"Teacher cache: {self.cache.path}.*, {100 * self.cache.complete().mean():.0f} % filled")
        else:
            fill(self.cache, self.teacher, self.data, self.world, self.batch_size)

    def __call__(self, batch: Batch) -> Tensor:
        """The teacher's embeddings (B, D) float32, of length 1 to float16 accuracy."""
        assert self.cache, "start_epoch comes first"
        indices, mirrored = batch.indices.numpy(), batch.mirrored.numpy()
        embeddings, known = self.cache.read(indices, mirrored)
        if not known.all():
            unknown = np.flatnonzero(~known)
            images, indices, mirrored = batch.images[unknown], indices[unknown], mirrored[unknown]
            embeddings[unknown] = self._ask(images)
            self.cache.write(indices, mirrored, embeddings[unknown])
            self.cache.write(indices, ~mirrored, self._ask(images.flip(3)))
        return torch.from_numpy(embeddings).to(batch.images.device, non_blocking=True).float()

    def _ask(self, images: Tensor) -> np.ndarray:
        return self.teacher(images).half().cpu().numpy()


def cache_opener(config: EasyDict, data: FaceDataset) -> Callable[[Path], TeacherCache]:
    """A function that opens the cache in config.teacher_cache of a teacher's file, for these data."""
    of_data = fingerprint_of_data(data)
    network = "ONNX" if is_onnx(config) else json.dumps(teacher_network(config))

    def open_cache(path: Path) -> TeacherCache:
        identity: Identity = {
            "teacher": path.name,
            "teacher_sha256": fingerprint_of_teacher(path),
            "network": network,
            "precision": config.teacher_precision,
            "data_sha256": of_data,
        }
        return TeacherCache(Path(config.teacher_cache), path.stem, identity, len(data), config.embedding_size)

    return open_cache


class DistillTask:
    """ArcFace plus w times the distillation loss, both of the student's embedding of the same batch."""

    def __init__(self, backbone: nn.Module, header: nn.Module, lessons: Lessons, w: float) -> None:
        self.backbone = backbone
        self.header = header
        self.lessons = lessons
        self.w = w

    def start_epoch(self, epoch: int) -> None:
        """Takes the teacher of the epoch."""
        self.lessons.start_epoch(epoch)

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """{"Loss": ArcLoss + w · MSE, "ArcLoss", "MSE"}."""
        embeddings = self.backbone(batch.images)  # (B, D)
        arc_loss = F.cross_entropy(self.header(embeddings, batch.labels), batch.labels)
        mse = distillation_loss(embeddings, self.lessons(batch))
        return {"Loss": arc_loss + self.w * mse, "ArcLoss": arc_loss, "MSE": mse}
