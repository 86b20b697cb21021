"""The teacher's files, and the student's."""

from collections.abc import Callable, Iterator
from pathlib import Path

from easydict import EasyDict
from torch import nn
from tqdm import tqdm

from utils.checkpoint import NETWORK_FIELDS, list_backbones, load_weights
from utils.checks.plan import Run
from utils.checks.table import FAIL, PASS, WARN, Check, heard
from utils.errors import UserError
from utils.teacher import Teacher, make_teacher, teacher_files


def teacher(build_backbone: Callable[[EasyDict], nn.Module], plan: Run) -> Iterator[Check]:
    """The teacher's file for each epoch, and the student's, whole and of their networks."""
    config = plan.config
    if not plan.distils:
        return
    try:
        plan.teacher_files = teacher_files(config, plan.ends)
    except UserError as error:
        raise UserError(f"{error} (./train.sh needs no teacher: teacher_pth=)") from None
    if config.multi_step:
        there = len([step for step in list_backbones(config.teacher_pth) if step])
        if there != len(plan.ends):
            found = f"{there} checkpoints of a teacher for {len(plan.ends)} epochs: each has the one as far in training"
            yield Check("teacher", WARN, found, "copy those that are missing, if the teacher had as many epochs")
    plan.teacher = make_teacher(config, plan.world, build_backbone)
    files, whole = dict.fromkeys(plan.teacher_files), list[Path]()
    for path in tqdm(files, desc="Checking", unit="teacher", leave=False, disable=None):
        yield from heard("teacher", _load(plan.teacher, path, whole))
    found = f"{len(whole)} of {len(files)} files in {config.teacher_pth} whole"
    yield Check("teacher", PASS, found) if whole else Check("teacher", FAIL, found, "mend those, or name another")
    if config.student_pth:
        path = Path(config.student_pth, f"{config.student_global_step}backbone.pth")
        load_weights(plan.backbone, path, f"student_pth, student_global_step, {NETWORK_FIELDS}")
        yield Check("teacher", PASS, f"the student starts from {path}")


def _load(teacher: Teacher, path: Path, whole: list[Path]) -> Iterator[Check]:
    teacher.load(path)
    whole.append(path)
    yield from ()
