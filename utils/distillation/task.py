"""Knowledge distillation: the task that adds a teacher's embeddings to ArcFace (paper, Section III-C)."""

from typing import Any

from torch import Tensor, nn

from utils.distillation.targets import TeacherTargets
from utils.losses.arcface import header_loss
from utils.losses.embedding_mse import distillation_loss
from utils.training.task import Batch, Task


class DistillTask(Task):
    """ArcFace plus w times the distillation loss, both of the student's embedding of the same batch."""

    def __init__(self, backbone: nn.Module, header: nn.Module, targets: TeacherTargets, w: float) -> None:
        super().__init__(backbone, header)
        self.targets = targets
        self.w = w

    def on_epoch_start(self, epoch: int) -> None:
        """Takes the teacher of the epoch."""
        self.targets.on_epoch_start(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Which teacher serves: for people, the epoch decides on it."""
        return {"teacher": str(self.targets.active_checkpoint)}

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """{"Loss": ArcLoss + w · MSE, "ArcLoss", "MSE"}."""
        embeddings = self.backbone(batch.images)  # (B, D)
        arc_loss = header_loss(self.header, embeddings, batch.labels)
        mse = distillation_loss(embeddings, self.targets(batch))
        return {"Loss": arc_loss + self.w * mse, "ArcLoss": arc_loss, "MSE": mse}
