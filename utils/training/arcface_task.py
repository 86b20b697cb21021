"""Plain training with the ArcFace header."""

from torch import Tensor

from utils.losses.arcface import header_loss
from utils.training.task import Batch, Task


class ArcFaceTask(Task):
    """Plain training: the cross-entropy of the header's logits."""

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """{"Loss": scalar}."""
        return {"Loss": header_loss(self.header, self.backbone(batch.images), batch.labels)}
