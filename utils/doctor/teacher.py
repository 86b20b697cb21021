"""Checks of weights: the teacher's files, and the initial weights of the student."""

from collections.abc import Callable, Iterator
from pathlib import Path

from easydict import EasyDict
from torch import nn
from tqdm import tqdm

from utils.checkpoints.weights import list_backbones
from utils.distillation.schedule import teacher_file_per_epoch
from utils.distillation.teacher import Teacher, make_teacher
from utils.doctor.plan import RunPlan
from utils.doctor.table import FAIL, PASS, WARN, Check, collect_checks, not_checked
from utils.errors import UserError
from utils.losses.arcface import ArcFace
from utils.training.student import check_student, load_student_files


def check_teacher(build_backbone: Callable[[EasyDict], nn.Module], plan: RunPlan) -> Iterator[Check]:
    """Loads the teacher's file of every epoch. build_backbone: backbones.build_backbone."""
    config = plan.config
    if not plan.distils:
        return
    try:
        plan.teacher_files = teacher_file_per_epoch(config, plan.epoch_end_steps)
    except UserError as error:
        raise UserError(error.problem, fix=f"{error.fix or 'name another'} (plain training, ./train.sh, needs no teacher)") from None
    if config.multi_step:
        checkpoints = len([step for step in list_backbones(config.teacher_pth) if step])
        if checkpoints != len(plan.epoch_end_steps):
            epochs = len(plan.epoch_end_steps)
            found = f"{checkpoints} checkpoints of a teacher for {epochs} epochs: each uses the one as far trained"
            yield Check("teacher", WARN, found, "copy the missing ones, if the teacher trained for as many epochs")
    plan.teacher = make_teacher(config, plan.world, build_backbone)
    files, valid = dict.fromkeys(plan.teacher_files), list[Path]()
    for path in tqdm(files, desc="Checking", unit="teacher", leave=False, disable=None):
        yield from collect_checks("teacher", _load(plan.teacher, path, valid))
    found = f"{len(valid)} of {len(files)} files in {config.teacher_pth} valid"
    yield Check("teacher", PASS, found) if valid else Check("teacher", FAIL, found, "fix those, or name another")


def check_student_weights(plan: RunPlan) -> Iterator[Check]:
    """Loads the initial weights that the config names, unless the run resumes."""
    config = plan.config
    if not config.student_pth or plan.progress.step:
        return
    check_student(config)
    header = None
    if config.student_header:
        if not plan.num_classes:
            yield not_checked("student")
            return
        header = ArcFace(config.embedding_size, plan.num_classes)
    path = load_student_files(config, plan.backbone, header, plan.world)
    yield Check("student", PASS, f"starts from {path}, with {'its' if header else 'a new'} header")


def _load(teacher: Teacher, path: Path, valid: list[Path]) -> Iterator[Check]:
    """Loads a file and appends it to the valid ones. Yields no check. Raises UserError if the file is unusable."""
    teacher.load(path)
    valid.append(path)
    yield from ()
