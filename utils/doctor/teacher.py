"""The teacher's files, and the weights that a run starts from."""

from collections.abc import Callable, Iterator
from pathlib import Path

from easydict import EasyDict
from torch import nn
from tqdm import tqdm

from utils.checkpoints.weights import list_backbones
from utils.distillation.schedule import teacher_files
from utils.distillation.teacher import Teacher, make_teacher
from utils.doctor.plan import Run
from utils.doctor.table import FAIL, PASS, WARN, Check, heard, unknown
from utils.errors import UserError
from utils.losses.arcface import ArcFace
from utils.training.student import check_student, load_student_files


def teacher(build_backbone: Callable[[EasyDict], nn.Module], plan: Run) -> Iterator[Check]:
    """The teacher's file for each epoch, whole and of its network."""
    config = plan.config
    if not plan.distils:
        return
    try:
        plan.teacher_files = teacher_files(config, plan.epoch_end_steps)
    except UserError as error:
        raise UserError(f"{error} (plain training, ./train.sh, needs no teacher)") from None
    if config.multi_step:
        there = len([step for step in list_backbones(config.teacher_pth) if step])
        if there != len(plan.epoch_end_steps):
            epochs = len(plan.epoch_end_steps)
            found = f"{there} checkpoints of a teacher for {epochs} epochs: each has the one as far in training"
            yield Check("teacher", WARN, found, "copy those that are missing, if the teacher had as many epochs")
    plan.teacher = make_teacher(config, plan.world, build_backbone)
    files, whole = dict.fromkeys(plan.teacher_files), list[Path]()
    for path in tqdm(files, desc="Checking", unit="teacher", leave=False, disable=None):
        yield from heard("teacher", _load(plan.teacher, path, whole))
    found = f"{len(whole)} of {len(files)} files in {config.teacher_pth} whole"
    yield Check("teacher", PASS, found) if whole else Check("teacher", FAIL, found, "mend those, or name another")


def student(plan: Run) -> Iterator[Check]:
    """The weights that the run starts from, whole and of its networks."""
    config = plan.config
    if not config.student_pth or plan.progress.step:
        return
    check_student(config)
    header = None
    if config.student_header:
        if not plan.num_classes:
            yield unknown("student")
            return
        header = ArcFace(config.embedding_size, plan.num_classes)
    path = load_student_files(config, plan.backbone, header, plan.world)
    yield Check("student", PASS, f"starts from {path}, with {'its' if header else 'a new'} header")


def _load(teacher: Teacher, path: Path, whole: list[Path]) -> Iterator[Check]:
    teacher.load(path)
    whole.append(path)
    yield from ()
