"""Knowledge distillation task: ArcFace plus the distance to a teacher's embeddings (paper, Section III-C)."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from config.base import Config
from utils.distillation.schedule import prepare_teacher
from utils.distillation.targets import CachedTeacherTargets, TeacherTargets, open_caches
from utils.distributed.collectives import main_process_first
from utils.distributed.process_group import wrap_ddp
from utils.losses.embedding_mse import distillation_loss
from utils.losses.header import header_loss
from utils.training.task import Batch, Task, TaskInputs


class DistillTask(Task):
    """Minimises the ArcFace loss plus w times the distillation loss of the student's embeddings."""

    fixed_fields = ("loss", "header_frozen")

    def __init__(self, backbone: nn.Module, header: nn.Module, targets: TeacherTargets, w: float) -> None:
        """targets: source of the teacher's embeddings. w: weight of the distillation loss."""
        super().__init__(backbone, header)
        self.targets = targets
        self.w = w

    def on_epoch_start(self, epoch: int) -> None:
        """Loads the teacher checkpoint of the epoch."""
        self.targets.on_epoch_start(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Returns the path of the active teacher, for information; the epoch decides which one is loaded."""
        return {"teacher": str(self.targets.active_checkpoint)}

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """Returns {"Loss": ArcLoss + w · MSE, "ArcLoss", "MSE"}, each a scalar."""
        embeddings = self.backbone(batch.images)  # (B, D)
        arc_loss = header_loss(self.header, embeddings, batch.labels)
        mse = distillation_loss(embeddings, self.targets(batch))
        return {"Loss": arc_loss + self.w * mse, "ArcLoss": arc_loss, "MSE": mse}


def make_distillation_task(build_backbone: Callable[[Config], nn.Module], inputs: TaskInputs) -> Task:
    """Returns the task of training with a teacher, after loading each of the teacher's files once. Collective."""
    config, world, dataset = inputs.config, inputs.world, inputs.dataset
    teacher, files = prepare_teacher(config, world, inputs.epoch_end_steps, build_backbone)
    targets = TeacherTargets(teacher, files)
    if config.teacher_cache:
        caches = main_process_first(world, lambda: open_caches(config, files, dataset))
        skip_bad = config.on_bad_image == "skip"
        targets = CachedTeacherTargets(teacher, files, caches, dataset, world, config.eval_batch, skip_bad)
    return DistillTask(wrap_ddp(inputs.backbone, world), inputs.header, targets, config.w)
