"""Start of a run: resumed from checkpoint.pth, resumed from the exported weights of a step, or from scratch."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from config.base import Config, rename_field
from utils.checkpoints.broadcast import read_on_main
from utils.checkpoints.run_file import CHECKPOINT_FILE, START_OVER_HINT, list_checkpoints, read_checkpoint
from utils.checkpoints.weights import as_checkpoint_error, remove_stale_tempfiles
from utils.datasets.shared_loader import SharedMemoryLoader
from utils.distributed.collectives import run_on_main
from utils.distributed.process_group import World
from utils.distributed.restart import run_ids, was_restarted
from utils.errors import UserError, shorten
from utils.filesystem import archive_files, path_exists
from utils.logs.logger import log
from utils.training.checkpointing.progress import INITIAL_PROGRESS, TrainProgress, progress_from_checkpoint
from utils.training.checkpointing.step_ranges import StepRanges
from utils.training.freezing import expand_ranges
from utils.training.learning_rate import global_batch_size
from utils.training.task import Task

# Command that starts each kind of run, by the task name in its checkpoint.
_COMMANDS = {"ArcFaceTask": "./train.sh", "DistillTask": "./train_kd.sh", "SearchTask": "NAS/search.sh"}
# Other files that a run and its evaluation write for the same checkpoints.
_COMPANION_FILES = ("config.json", "results.json", "results.txt", "thresholds.json", "roc.png")


@dataclass(frozen=True)
class ResumePoint:
    """Start of a run: from scratch, from the content of a checkpoint.pth, or from the exported weights of a step."""

    progress: TrainProgress = INITIAL_PROGRESS
    state: dict[str, Any] | None = None  # content of checkpoint.pth
    export_folder: Path | None = None  # folder with the exported weights of progress.step


def resolve_resume(config: Config, task_type: type[Task], loader: SharedMemoryLoader, world: World) -> ResumePoint:
    """Decides how the run of config.output starts, the same on all ranks, and logs it. Collective: call on all ranks.

    It resumes from checkpoint.pth if there is one. With resume=1 and a global_step it resumes from the exported weights
    of that step instead, unless the checkpoint belongs to a run that started that way. Otherwise, and with resume=0, it
    starts from scratch. Raises UserError if the files do not fit this run.
    """
    names, restarted = run_ids(world), was_restarted(world)
    header: dict[str, Any] = {}

    def select() -> dict[str, Any] | None:
        state = _select_checkpoint(config, task_type, loader, world, names if restarted else [])
        if state is not None and config.header == "sharded":  # may be too large for other ranks, which get their shard
            with as_checkpoint_error(Path(config.output, CHECKPOINT_FILE)):
                header.update(weights=state.pop("header"), optimizer=state["optimizer"].pop("header"))
        return state

    state = read_on_main(world, select)
    if header and state is not None:
        state["header"], state["optimizer"]["header"] = header["weights"], header["optimizer"]
    if state is not None:
        return ResumePoint(progress_from_checkpoint(state), state)
    if config.resume != "1":
        if world.is_main and (restarted or config.resume == "auto"):
            log.info(f"{config.output} holds no {CHECKPOINT_FILE} of this run: starts from scratch")
        return ResumePoint()
    run_on_main(world, lambda: _require_exported_files(config, task_type.export_suffixes))
    return ResumePoint(_progress_of_global_step(config, len(loader), world), export_folder=Path(config.output))


def _progress_of_global_step(config: Config, steps_per_epoch: int, world: World) -> TrainProgress:
    """Returns the progress at config.global_step, computed from the number of steps per epoch; logs it on rank 0."""
    epoch, step = divmod(config.global_step, steps_per_epoch)
    epoch_end_steps = StepRanges(range(steps_per_epoch, config.global_step + 1, steps_per_epoch))
    progress = TrainProgress(config.global_step, epoch_end_steps, step * global_batch_size(config, world.size))
    if world.is_main:
        log.info(
            f"Resumes from the files of step {config.global_step}: epoch {epoch}, step {step} of its {steps_per_epoch}"
            "; they hold no momentum, which starts at zero"
        )
        if step:
            log.warning(
                f"Step {config.global_step} ends no epoch of {steps_per_epoch} steps: if it was the end of an epoch, "
                "batch_size or the number of processes has changed, and the learning rate with it"
            )
    return progress


def _select_checkpoint(
    config: Config, task_type: type[Task], loader: SharedMemoryLoader, world: World, restarted_run_ids: list[str]
) -> dict[str, Any] | None:
    """Returns the content of the checkpoint to resume from, or None. Called on rank 0 only.

    restarted_run_ids: ids of this run if its launcher has restarted it, else empty. A restarted run resumes from its
    own checkpoint even with resume=0.
    """
    folder = Path(config.output)
    if config.resume == "0" and not restarted_run_ids:
        return None
    state = read_checkpoint(folder)
    if config.resume == "1" and not config.global_step and state is None:
        raise UserError(
            f"config resume: {folder} holds no {CHECKPOINT_FILE}",
            fix="name a step of its published files with global_step=STEP",
        )
    if config.resume != "1" and config.global_step and state is None:
        fix = "to resume from the files of that step, add --resume 1"
        log.warning(UserError(f"config global_step: {config.global_step} is not used", fix))
    if state is None:
        return None
    with as_checkpoint_error(folder / CHECKPOINT_FILE):
        if config.resume == "0" and not set(state["run"]) & set(restarted_run_ids):
            return None  # an earlier run's
        started_with = [state["config"].get(field) for field in ("resume", "global_step")]
        if config.resume == "1" and config.global_step and started_with != ["1", config.global_step]:
            return None
        _check_compatible(state, config, task_type, loader)
        _log_resume(state, config, loader, world)
    return state


def already_finished_message(config: Config) -> str:
    """Returns the log line for a run that has no steps left."""
    return f"Nothing to do: the run in {config.output} is finished; name another output, or {START_OVER_HINT}"


def archive_previous_checkpoints(folder: Path, resume_point: ResumePoint, suffixes: Sequence[str]) -> None:
    """Moves the files of an earlier run to a new folder old-N, so that none is mistaken for a file of this run.

    A run from scratch moves all of them, a run from exported weights only those of later steps, a run from a checkpoint
    none. Also removes temporary files of killed processes. Call on rank 0 only.

    suffixes: of the exported file names, after the step.
    """
    remove_stale_tempfiles(folder)
    files = previous_run_files(folder, resume_point, suffixes)
    if not files:
        return
    log.info(f"Archived: {len(files)} files of an earlier run are now in {archive_files(folder, files)}")


def previous_run_files(folder: Path, resume_point: ResumePoint, suffixes: Sequence[str]) -> list[Path]:
    """Returns the files of an earlier run that a run from this resume point would archive."""
    if resume_point.state is not None:
        return []
    last = resume_point.progress.step if resume_point.export_folder else -1
    files = [folder / CHECKPOINT_FILE, *list_checkpoints(folder), *exported_files(folder, suffixes, last)]
    files = [path for path in files if path.is_file()]
    if not files or resume_point.export_folder:
        return files
    return files + [path for path in (folder / name for name in _COMPANION_FILES) if path.is_file()]


def exported_files(folder: Path, suffixes: Sequence[str], after: int = -1) -> list[Path]:
    """Returns the exported weights {step}{suffix} in the folder whose step is greater than `after`."""
    name = re.compile(rf"(\d+)({'|'.join(map(re.escape, suffixes))})")
    matches = ((name.fullmatch(path.name), path) for path in folder.glob("*.pth"))
    return sorted(path for match, path in matches if match and int(match[1]) > after)


def _require_exported_files(config: Config, suffixes: Sequence[str]) -> None:
    """Raises UserError unless all files of config.global_step exist in config.output."""
    folder = Path(config.output)
    for suffix in suffixes:
        path = folder / f"{config.global_step}{suffix}"
        if not path_exists(path.exists):
            steps = {int(re.match(r"\d+", file.name)[0]) for file in exported_files(folder, suffixes)}  # type: ignore[index]
            known = ", ".join(map(str, sorted(steps))) or "there is none"
            raise UserError(
                f"config global_step: {path}: no such checkpoint",
                fix=f"name another step with global_step=STEP ({known})",
            )


def _check_compatible(state: dict[str, Any], config: Config, task_type: type[Task], loader: SharedMemoryLoader) -> None:
    """Raises UserError unless the checkpoint has the task type, number of images, seed and fixed fields of this run."""
    where = f"{config.output}/{CHECKPOINT_FILE}"
    if state["way"] != task_type.__name__:
        saved_type = state["way"] if str(state["way"]).isidentifier() else "unknown"
        fix = (
            f"resume it with {_COMMANDS[saved_type]}, or name another output"
            if saved_type in _COMMANDS
            else f"name another, or {START_OVER_HINT}"
        )
        raise UserError(f"config output: {where} is of another kind of run ({saved_type:.40})", fix=fix)
    if state["images"] != loader.sampler.n_images:
        raise UserError(
            f"config rec: the run in {config.output} was on {state['images']!r:.20} images, but here are "
            f"{loader.sampler.n_images}",
            fix=f"name its data, or another output; {START_OVER_HINT}",
        )
    if state["config"]["seed"] != config.seed:
        raise UserError(
            f"config seed: {config.seed}, but the run in {config.output} shuffles its images with "
            f"{state['config']['seed']!r:.20}",
            fix=f"use that seed; {START_OVER_HINT}",
        )
    saved = saved_config_values(state)
    for name in ("optimizer", "freeze", *task_type.fixed_fields):
        current = getattr(config, name)
        if saved[name] != current and not (name == "freeze" and _names_same_modules(saved[name], current)):
            value = shorten(str(current), 200, quote=False) or "empty"
            raise UserError(
                f"config {name}: {value}, but the run in {config.output} has {shorten(saved[name], 200)}",
                fix=f"use that; {START_OVER_HINT}",
            )


def _names_same_modules(saved: object, current: str) -> bool:
    """Whether two values of config.freeze name the same modules, in any order, with spaces or as ranges."""
    return {*expand_ranges(str(saved))} == {*expand_ranges(current)}


def _log_resume(state: dict[str, Any], config: Config, loader: SharedMemoryLoader, world: World) -> None:
    """Logs the step at which the run resumes, and what has changed since: config, data and number of processes."""
    progress = progress_from_checkpoint(state)
    log.info(
        f"Resumes at step {progress.step}: epoch {progress.epoch}, of which {progress.samples_seen} images are done "
        f"({START_OVER_HINT})"
    )
    current, saved = config_values(config), saved_config_values(state)
    for name in sorted(current.keys() | saved.keys()):
        before, after = saved.get(name), current.get(name)
        if before != after and name not in ("resume", "global_step"):
            log.info(f"Changed: config {name} was {before!r}, is {after!r}")
    if state["data"] != loader.dataset.fingerprint:
        log.warning(
            f"Changed: the data in {config.rec} are not those that the run began with, though the number of images is "
            "the same"
        )
    if len(state["ranks"]) != world.size:
        before, after = len(state["ranks"]), world.size
        log.info(
            f"Changed: the number of processes was {before}, is {after}: {config.batch_size * after} images a step; "
            "the learning rate scales with them, and the rest of the epoch is split over the new number"
        )


def saved_config_values(state: dict[str, Any]) -> dict[str, Any]:
    """Returns the config of a checkpoint's run by today's names, with the defaults of fields that it did not have."""
    return Config().to_dict() | dict(rename_field(name, value) for name, value in state["config"].items())


def config_values(config: Config) -> dict[str, Any]:
    """Returns the config as plain JSON values; lr_func becomes the list of its values, one per epoch."""
    fields = {name: value for name, value in config.to_dict().items() if not callable(value)}
    fields["lr_func"] = [config.lr_factor(epoch) for epoch in range(config.num_epoch)]
    return json.loads(json.dumps(fields, default=str))
