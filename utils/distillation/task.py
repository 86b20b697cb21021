"""Knowledge distillation: the task that adds a teacher's embeddings to ArcFace (paper, Section III-C)."""

from typing import Any

from torch import Tensor, nn

from utils.distillation.targets import Lessons
from utils.losses.arcface import header_loss
from utils.losses.embedding_mse import distillation_loss
from utils.training.task import Batch, Task


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
