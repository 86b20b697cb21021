"""Training with the classification loss, without a teacher."""

from torch import Tensor

from utils.distributed.data_parallel import wrap_ddp
from utils.losses.header import header_loss
from utils.training.task import Batch, Task, TaskInputs


class ArcFaceTask(Task):
    """Minimises the cross-entropy of the header's logits."""

    fixed_fields = ("loss", "header_frozen")

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """Returns {"Loss": scalar}."""
        return {"Loss": header_loss(self.header, self.backbone(batch.images), batch.labels)}


def make_arcface_task(inputs: TaskInputs) -> Task:
    """Returns the task of ArcFace training without a teacher. Collective."""
    return ArcFaceTask(wrap_ddp(inputs.backbone, inputs.world), inputs.header)
