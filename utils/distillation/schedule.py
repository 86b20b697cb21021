"""Which of the teacher's checkpoints teaches in which epoch of the student."""

from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path

from easydict import EasyDict
from torch import nn

from utils.checkpoints.weights import list_backbones
from utils.distillation.teacher import Teacher, is_onnx, make_teacher
from utils.distributed.collectives import run_on_all, run_on_main
from utils.distributed.process_group import World
from utils.errors import UserError
from utils.filesystem import is_no_folder
from utils.logs.progress_bar import Progress
from utils.logs.run_log import log

_MOST_EPOCHS = 1_000_000  # of a distillation: each has its teacher in a list


def teacher_files(config: EasyDict, epoch_end_steps: Sequence[int]) -> list[Path]:
    """The teacher's file for each of the student's epochs. Raises UserError where there is none.

    Template: one file for all. Multi-step: the teacher's own checkpoint of the epoch (paper, Section III-C), or, of
    another number of epochs, the first at which the teacher had done the fraction of its training that the student
    has at the end of this epoch. An untrained checkpoint (step 0) is none.

    Args:
        config: of the student.
        ends: the student's global step at the end of each of its epochs.
    """
    check_folders(config)
    if len(epoch_end_steps) > _MOST_EPOCHS:
        raise UserError(
            f"config max_steps: {len(epoch_end_steps):,} epochs are too many to plan teachers for; lower max_steps"
        )
    place = Path(config.teacher_pth)
    if is_onnx(config) or is_no_folder(place):
        if config.multi_step:
            raise UserError(f"config teacher_pth: multi-step needs the folder of a teacher's checkpoints, not {place}")
        return [place] * len(epoch_end_steps)
    trained = {step: path for step, path in list_backbones(place, "teacher_pth").items() if step}
    if not trained:
        raise UserError(f"config teacher_pth: {place} holds an untrained checkpoint alone (0backbone.pth); train it")
    if config.multi_step:
        return [trained[step] for step in align_teacher_steps(epoch_end_steps, list(trained))]
    if config.teacher_global_step not in trained:
        raise UserError(
            f"config teacher_global_step: no trained {place / f'{config.teacher_global_step}backbone.pth'}; there are "
            f"the steps {', '.join(map(str, trained))}"
        )
    return [trained[config.teacher_global_step]] * len(epoch_end_steps)


def check_folders(config: EasyDict) -> None:
    """Raises UserError unless a teacher is named, and another folder for the student."""
    if not config.teacher_pth:
        raise UserError("config teacher_pth: is empty; name the folder of the teacher's checkpoints, or an ONNX file")
    path = Path(config.teacher_pth)
    folder = path.parent if is_no_folder(path) else path
    if folder.resolve() == Path(config.output).resolve():
        raise UserError(f"config output: {config.output!r} is the teacher's folder; name another for the student")


def align_teacher_steps(epoch_end_steps: Sequence[int], steps: list[int]) -> list[int]:
    """Which of the teacher's steps (ascending) is as far in its training as the student is at each of its ends."""
    if len(epoch_end_steps) == len(steps):
        return list(steps)
    return [next(step for step in steps if step * epoch_end_steps[-1] >= end * steps[-1]) for end in epoch_end_steps]


def log_plan(files: list[Path]) -> None:
    """Says which file serves in which epochs."""
    epoch = 0
    for path, group in groupby(files):
        last = epoch + len(list(group)) - 1
        log.info(f"Teacher of epoch{f' {epoch}' if last == epoch else f's {epoch} to {last}'}: {path}")
        epoch = last + 1


def check_files(teacher: Teacher, files: list[Path], world: World) -> None:
    """Loads every file once, so that one that will not serve is known, and told once, before the first step."""

    def load_all() -> None:
        different = list(dict.fromkeys(files))
        with Progress(len(different), "Checking", "teachers", world.is_main) as progress:
            for path in different:
                teacher.load(path)
                progress.update()

    run_on_all(world, load_all)


def prepare_teacher(
    config: EasyDict, world: World, epoch_end_steps: Sequence[int], build_backbone: Callable[[EasyDict], nn.Module]
) -> tuple[Teacher, list[Path]]:
    """The config's teacher and its file for each epoch, every one tried, and said. `ends` as in teacher_files."""
    files = run_on_main(world, lambda: teacher_files(config, epoch_end_steps))
    teacher = make_teacher(config, world, build_backbone)
    check_files(teacher, files, world)
    log_plan(files)
    return teacher, files
