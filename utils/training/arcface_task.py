"""Training with the ArcFace loss, without a teacher."""

from torch import Tensor

from utils.losses.header import header_loss
from utils.training.task import Batch, Task


class ArcFaceTask(Task):
    """Minimises the cross-entropy of the header's logits."""

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """Returns {"Loss": scalar}."""
        return {"Loss": header_loss(self.header, self.backbone(batch.images), batch.labels)}
