"""Schedule of a teacher: the checkpoint that each epoch of the student uses."""

from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path

from torch import nn

from config.base import Config
from utils.checkpoints.weights import list_backbones
from utils.distillation.teacher import Teacher, is_onnx, make_teacher
from utils.distributed.collectives import run_on_all, run_on_main
from utils.distributed.process_group import World
from utils.errors import UserError
from utils.filesystem import exists_as_non_folder, is_in_folder
from utils.logs.logger import log
from utils.logs.progress_bar import ProgressReporter

_MAX_EPOCHS = 1_000_000  # the schedule is a list with an entry per epoch


def teacher_file_per_epoch(config: Config, epoch_end_steps: Sequence[int]) -> list[Path]:
    """Returns the teacher file of each of the student's epochs.

    Single-step distillation uses one file for all epochs. Multi-step distillation (paper, Section III-C) uses the
    teacher's checkpoint of the same epoch. If the teacher trained for another number of epochs, it uses the first
    checkpoint whose fraction of the teacher's training is at least that of the student at the end of the epoch. The
    untrained checkpoint of step 0 is never used. Raises UserError if there is no such file.

    Args:
        config: config of the student.
        epoch_end_steps: global step of the student at the end of each epoch.
    """
    check_teacher_folder(config)
    if len(epoch_end_steps) > _MAX_EPOCHS:
        raise UserError(
            f"config max_steps: {len(epoch_end_steps):,} epochs are too many to plan teachers for",
            fix="lower max_steps",
        )
    path = Path(config.teacher_pth)
    if is_onnx(config) or exists_as_non_folder(path):
        if config.multi_step:
            raise UserError(f"config teacher_pth: multi-step needs the folder of a teacher's checkpoints, not {path}")
        return [path] * len(epoch_end_steps)
    trained = {step: file for step, file in list_backbones(path, "teacher_pth").items() if step}
    if not trained:
        raise UserError(
            f"config teacher_pth: {path} holds only an untrained checkpoint (0backbone.pth)", fix="train it"
        )
    if config.multi_step:
        if len(trained) != len(epoch_end_steps):
            found = f"{len(trained)} checkpoints of a teacher for {len(epoch_end_steps)} epochs"
            fix = "copy the missing ones, if the teacher trained for as many epochs"
            log.warning(UserError(f"{found}: each epoch uses the checkpoint at the same fraction of training", fix))
        return [trained[step] for step in align_teacher_steps(epoch_end_steps, list(trained))]
    if config.teacher_global_step not in trained:
        raise UserError(
            f"config teacher_global_step: no trained {path / f'{config.teacher_global_step}backbone.pth'}",
            fix=f"there are the steps {', '.join(map(str, trained))}",
        )
    return [trained[config.teacher_global_step]] * len(epoch_end_steps)


def check_teacher_folder(config: Config) -> None:
    """Raises UserError if teacher_pth is empty or in config.output, the student's own folder."""
    if not config.teacher_pth:
        raise UserError(
            "config teacher_pth: is empty", fix="name the folder of the teacher's checkpoints, or an ONNX file"
        )
    if is_in_folder(Path(config.teacher_pth), Path(config.output)):
        raise UserError(f"config output: {config.output!r} is the teacher's folder", fix="name another for the student")


def align_teacher_steps(epoch_end_steps: Sequence[int], steps: list[int]) -> list[int]:
    """Returns, for each epoch end of the student, the teacher step at the same fraction of its own training.

    steps: the teacher's steps, ascending. An equal number of epochs maps one to one; otherwise the first teacher step
    whose fraction is not smaller is taken.
    """
    if len(epoch_end_steps) == len(steps):
        return list(steps)
    return [next(step for step in steps if step * epoch_end_steps[-1] >= end * steps[-1]) for end in epoch_end_steps]


def log_teacher_schedule(files: list[Path]) -> None:
    """Logs the teacher file of each range of epochs."""
    epoch = 0
    for path, group in groupby(files):
        last = epoch + len(list(group)) - 1
        log.info(f"Teacher of epoch{f' {epoch}' if last == epoch else f's {epoch} to {last}'}: {path}")
        epoch = last + 1


def check_teacher_files(teacher: Teacher, files: list[Path], world: World) -> None:
    """Loads every file once, so that an unusable one is reported before the first step. Collective: call on all ranks.

    Raises UserError, which names all unusable files.
    """

    def load_all() -> None:
        unique_files, errors = list(dict.fromkeys(files)), dict[str, UserError]()
        with ProgressReporter(len(unique_files), "Checking", "teachers", world.is_main) as progress:
            for path in unique_files:
                try:
                    teacher.load(path)
                except UserError as error:
                    errors[path.name] = error
                progress.update()
        if errors:
            first = next(iter(errors.values()))
            counts = f"{len(errors)} of {len(unique_files)} teacher files are unusable: {', '.join(errors)}"
            raise UserError(first.problem + f" ({counts})" * (len(errors) > 1), first.fix)

    run_on_all(world, load_all)


def prepare_teacher(
    config: Config, world: World, epoch_end_steps: Sequence[int], build_backbone: Callable[[Config], nn.Module]
) -> tuple[Teacher, list[Path]]:
    """Returns the teacher and its file for each epoch, after it has loaded every file once and logged the schedule.

    Collective: call on all ranks. epoch_end_steps: as for `teacher_file_per_epoch`. Raises UserError.
    """
    files = run_on_main(world, lambda: teacher_file_per_epoch(config, epoch_end_steps))
    teacher = make_teacher(config, world, build_backbone)
    check_teacher_files(teacher, files, world)
    log_teacher_schedule(files)
    return teacher, files
