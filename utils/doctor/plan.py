"""The run that the doctor checks."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from easydict import EasyDict
from torch import nn

from utils.datasets.face_dataset import FaceDataset
from utils.datasets.sampler import EpochSampler
from utils.datasets.shared_buffers import SLOTS
from utils.datasets.transforms import SIZE
from utils.distillation.teacher import Teacher
from utils.distributed.process_group import World
from utils.training.progress import TrainProgress


@dataclass
class Run:
    """The run that is checked, and what the checks so far have found out about it."""

    config: EasyDict
    local: int  # processes on this machine
    processes: int  # on all machines
    world: World  # the doctor's own: one process
    backbone: nn.Module
    n_images: int  # 0: not known
    num_classes: int  # 0: not known
    epoch_end_steps: Sequence[int]  # see epoch_ends
    distils: bool  # whether it has a teacher: ./train_kd.sh
    dataset: FaceDataset | None = None
    sampler: EpochSampler | None = None
    progress: TrainProgress = field(default_factory=TrainProgress)  # where it begins
    replaced: int = 0  # checkpoints of it that give way to new ones
    teacher: Teacher | None = None
    teacher_files: list[Path] = field(default_factory=list)  # of each epoch
    set_bytes: int = 0  # of the verification sets, decoded

    @property
    def header_bytes(self) -> int:
        """Of the header's weights, all classes together."""
        return 4 * self.config.embedding_size * self.num_classes

    @property
    def slot_bytes(self) -> int:
        """Of the images that a loader worker holds."""
        return SLOTS * self.config.batch_size * SIZE * SIZE * 3
