"""Knowledge distillation task: the classification loss and a teacher's embeddings (paper, Section III-C)."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from config.base import Config
from utils.distillation.schedule import prepare_teacher
from utils.distillation.targets import CachedTeacherTargets, TeacherTargets, open_caches
from utils.distributed.collectives import main_process_first
from utils.distributed.data_parallel import wrap_ddp
from utils.distributed.process_group import World
from utils.losses.distilled_centres import DistilledCentres
from utils.losses.embedding_mse import distillation_loss
from utils.losses.header import header_loss
from utils.training.prepare import PreparedRun, prepare_training
from utils.training.task import Batch, Task, TaskInputs


class DistillTask(Task):
    """Minimises the classification loss plus w times the distillation loss of the student's embeddings.

    With distill=adadistill it minimises the classification loss alone, whose class centres are the teacher's.
    """

    fixed_fields = ("loss", "header_frozen", "distill")

    def __init__(
        self,
        backbone: nn.Module,
        header: nn.Module,
        targets: TeacherTargets,
        w: float,
        centres: DistilledCentres | None = None,
    ) -> None:
        """targets: source of the teacher's embeddings. w: weight of the distillation loss. centres: of adadistill."""
        super().__init__(backbone, header)
        self.targets = targets
        self.w = w
        self.centres = centres

    def on_epoch_start(self, epoch: int) -> None:
        """Loads the teacher checkpoint of the epoch."""
        self.targets.on_epoch_start(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Returns the path of the active teacher, for information; the epoch decides which one is loaded."""
        return {"teacher": str(self.targets.active_checkpoint)}

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """Returns {"Loss": ArcLoss + w · MSE, "ArcLoss", "MSE"}, each a scalar; with adadistill {"Loss"}."""
        embeddings = self.backbone(batch.images)  # (B, D)
        if self.centres:
            self.centres.move(embeddings, self.targets(batch), batch.labels)
            return {"Loss": header_loss(self.header, embeddings, batch.labels)}
        arc_loss = header_loss(self.header, embeddings, batch.labels)
        mse = distillation_loss(embeddings, self.targets(batch))
        return {"Loss": arc_loss + self.w * mse, "ArcLoss": arc_loss, "MSE": mse}

    def undo_step(self, nonfinite: Tensor) -> None:
        """Restores the class centres of adadistill."""
        if self.centres:
            self.centres.undo(nonfinite)


def prepare_distillation(build_backbone: Callable[[Config], nn.Module], config: Config, world: World) -> PreparedRun:
    """Returns the run that trains the config's backbone with a teacher; see `prepare_training`. Collective."""
    make_task = partial(make_distillation_task, build_backbone)
    return prepare_training(build_backbone, make_task, config, world, learned_centres=config.distill != "adadistill")


def make_distillation_task(build_backbone: Callable[[Config], nn.Module], inputs: TaskInputs) -> Task:
    """Returns the task of training with a teacher, after loading each of the teacher's files once. Collective."""
    config, world, dataset = inputs.config, inputs.world, inputs.dataset
    teacher, files = prepare_teacher(config, world, inputs.epoch_end_steps, build_backbone)
    targets = TeacherTargets(teacher, files)
    if config.teacher_cache:
        caches = main_process_first(world, lambda: open_caches(config, files, dataset))
        skip_bad = config.on_bad_image == "skip"
        targets = CachedTeacherTargets(teacher, files, caches, dataset, world, config.eval_batch, skip_bad)
    centres = DistilledCentres(inputs.header, world) if config.distill == "adadistill" else None
    return DistillTask(wrap_ddp(inputs.backbone, world), inputs.header, targets, config.w, centres)
