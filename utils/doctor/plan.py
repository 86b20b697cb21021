"""Description of the run that the doctor checks."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from config.base import Config
from utils.datasets.image_dataset import ImageDataset
from utils.datasets.sampler import EpochSampler
from utils.datasets.shared_buffers import SLOTS
from utils.datasets.transforms import SIZE
from utils.distillation.teacher import Teacher
from utils.distributed.process_group import World
from utils.training.checkpointing.progress import TrainProgress


@dataclass
class RunPlan:
    """Run that is checked, and what the checks so far have found out about it."""

    config: Config
    local_processes: int  # processes on this machine
    processes: int  # processes on all machines
    world: World  # of the doctor itself: one process
    backbone: nn.Module
    n_images: int  # 0: unknown
    num_classes: int  # 0: unknown
    epoch_end_steps: Sequence[int]  # global step at the end of each epoch
    distils: bool  # whether it trains with a teacher (./train_kd.sh)
    dataset: ImageDataset | None = None
    sampler: EpochSampler | None = None
    progress: TrainProgress = field(default_factory=TrainProgress)  # at the start of the run
    replaced: int = 0  # checkpoints of this run that newer ones will replace
    teacher: Teacher | None = None
    teacher_files: list[Path] = field(default_factory=list)  # one per epoch
    set_bytes: int = 0  # decoded images of the evaluation sets

    @property
    def header_bytes(self) -> int:
        """Bytes of the header's float32 weights for all classes."""
        return 4 * self.config.embedding_size * self.num_classes

    @property
    def slot_bytes(self) -> int:
        """Bytes of the shared memory that one loader worker writes images to."""
        return SLOTS * self.config.batch_size * SIZE * SIZE * 3
