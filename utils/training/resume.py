"""Where a run begins: with its checkpoint.pth, with published files, or anew."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from easydict import EasyDict

from utils.checkpoints.run_file import CHECKPOINT_FILE, START_OVER_HINT, kept_checkpoints, read_checkpoint
from utils.checkpoints.weights import as_checkpoint_error, remove_stale_tempfiles
from utils.datasets.shared_loader import Loader
from utils.distributed.collectives import run_on_main
from utils.distributed.exit_status import run_ids, was_restarted
from utils.distributed.process_group import World
from utils.errors import UserError
from utils.filesystem import archive, path_exists
from utils.logs.run_log import log
from utils.training.progress import INITIAL_PROGRESS, TrainProgress, progress_from_checkpoint
from utils.training.step_ranges import StepRanges
from utils.training.task import Task


@dataclass(frozen=True)
class ResumePoint:
    """Where a run begins: anew, with the state of a checkpoint.pth, or with a step's published files."""

    progress: TrainProgress = INITIAL_PROGRESS
    state: dict[str, Any] | None = None
    published: Path | None = None  # the folder


def resolve_resume(config: EasyDict, task_type: type[Task], loader: Loader, world: World) -> ResumePoint:
    """Where the run of config.output begins, the same on every process, and said.

    That is with its checkpoint.pth; but with the published files of config.global_step where resume=1 asks for them and
    the checkpoint is not of a run that began so; else anew. Raises UserError where there is something to go on from
    that does not fit.
    """
    names, again = run_ids(world), was_restarted(world)
    kept: dict[str, Any] = {}

    def choose() -> dict[str, Any] | None:
        state = _choose(config, task_type, loader, world, names if again else [])
        if state is not None and config.head == "sharded":  # may be too large for the others, who get their share
            with as_checkpoint_error(Path(config.output, CHECKPOINT_FILE)):
                kept.update(header=state.pop("header"), momentum=state["momentum"].pop("header"))
        return state

    state = run_on_main(world, choose)
    if kept and state is not None:
        state["header"], state["momentum"]["header"] = kept["header"], kept["momentum"]
    if state is not None:
        return ResumePoint(progress_from_checkpoint(state), state)
    if config.resume != "1":
        if world.is_main and (again or config.resume == "auto"):
            log.info(f"{config.output} holds no {CHECKPOINT_FILE} of this run: starts from the beginning")
        return ResumePoint()
    run_on_main(world, lambda: _require_published(config, task_type.suffixes))
    steps = len(loader)
    whole, rest = divmod(config.global_step, steps)
    epoch_end_steps = StepRanges(range(steps, config.global_step + 1, steps))
    progress = TrainProgress(config.global_step, epoch_end_steps, rest * config.batch_size * world.size)
    if world.is_main:
        log.info(
            f"Resumes from the files of step {config.global_step}: epoch {whole}, step {rest} of its {steps}; they "
            "hold no momentum, which starts anew"
        )
        if rest:
            log.warning(
                f"Step {config.global_step} ends no epoch of {steps} steps: if it did, batch_size or the number of "
                "processes was another, and so is the learning rate"
            )
    return ResumePoint(progress, published=Path(config.output))


def _choose(
    config: EasyDict, task_type: type[Task], loader: Loader, world: World, run_ids: list[str]
) -> dict[str, Any] | None:
    """The state to go on from, if any; on the main process. launchers: of a run that was started again."""
    folder = Path(config.output)
    if config.resume == "0" and not run_ids:
        return None
    state = read_checkpoint(folder)
    if config.resume == "1" and not config.global_step and state is None:
        raise UserError(
            f"config resume: {folder} holds no {CHECKPOINT_FILE}; name a step of its published files with "
            "global_step=STEP"
        )
    if config.resume != "1" and config.global_step and state is None:
        log.warning(f"config global_step: {config.global_step} is not used: --resume 1 goes on from its files")
    if state is None:
        return None
    with as_checkpoint_error(folder / CHECKPOINT_FILE):
        if config.resume == "0" and not set(state["run"]) & set(run_ids):
            return None  # of before; what a run that trains anew has done itself, it goes on from when started again
        begun = [state["config"].get(field) for field in ("resume", "global_step")]
        if config.resume == "1" and config.global_step and begun != ["1", config.global_step]:
            return None
        _check(state, config, task_type, loader)
        _log_resume_point(state, config, loader, world)
    return state


def already_finished_message(config: EasyDict) -> str:
    """Of a run that has done its last step."""
    return f"Nothing to do: {config.output} holds the whole run; take another output, or {START_OVER_HINT}"


# By the task that a checkpoint names.
_COMMANDS = {"ArcFaceTask": "./train.sh", "DistillTask": "./train_kd.sh", "SearchTask": "NAS/search.sh"}
# What else a run and its evaluation leave, of the same checkpoints.
_BESIDE = ("config.json", "results.json", "results.txt", "thresholds.json", "roc.png")


def archive_previous_checkpoints(folder: Path, resume_point: ResumePoint, suffixes: Sequence[str]) -> None:
    """Moves the files of an earlier run to a folder old-N of their own, so that none is taken for this run's: all where
    it trains anew, those of later steps where it begins with published files. Removes the remains of killed processes.

    suffixes: of the published files' names, behind the step.
    """
    remove_stale_tempfiles(folder)
    files = earlier_files(folder, resume_point, suffixes)
    if not files:
        return
    log.info(f"Set aside: {len(files)} files of an earlier run are now in {archive(folder, files)}")


def earlier_files(folder: Path, resume_point: ResumePoint, suffixes: Sequence[str]) -> list[Path]:
    """Returns the files of an earlier run that a run which begins at `start` would set aside."""
    if resume_point.state is not None:
        return []
    last = resume_point.progress.step if resume_point.published else -1
    files = [folder / CHECKPOINT_FILE, *kept_checkpoints(folder), *published_files(folder, suffixes, last)]
    files = [path for path in files if path.is_file()]
    if not files or resume_point.published:
        return files
    return files + [path for path in (folder / name for name in _BESIDE) if path.is_file()]


def published_files(folder: Path, suffixes: Sequence[str], after: int = -1) -> list[Path]:
    """Returns the published files of the folder that are of a later step than `after`."""
    name = re.compile(rf"(\d+)({'|'.join(map(re.escape, suffixes))})")
    matches = ((name.fullmatch(path.name), path) for path in folder.glob("*.pth"))
    return sorted(path for match, path in matches if match and int(match[1]) > after)


def _require_published(config: EasyDict, suffixes: Sequence[str]) -> None:
    """Raises UserError unless the files of config.global_step are there."""
    folder = Path(config.output)
    for suffix in suffixes:
        path = folder / f"{config.global_step}{suffix}"
        if not path_exists(path.exists):
            steps = {int(re.match(r"\d+", file.name)[0]) for file in published_files(folder, suffixes)}  # type: ignore[index]
            known = ", ".join(map(str, sorted(steps))) or "there is none"
            raise UserError(
                f"config global_step: {path}: no such checkpoint; name another step with global_step=STEP ({known})"
            )


def _check(state: dict[str, Any], config: EasyDict, task_type: type[Task], loader: Loader) -> None:
    """Raises UserError unless the state is of this kind of run, on these data."""
    where = f"{config.output}/{CHECKPOINT_FILE}"
    if state["way"] != task_type.__name__:
        of = state["way"] if str(state["way"]).isidentifier() else "unknown"
        fix = (
            f"go on with {_COMMANDS[of]}, or name another output"
            if of in _COMMANDS
            else f"name another, or {START_OVER_HINT}"
        )
        raise UserError(f"config output: {where} is of another kind of run ({of:.40}); {fix}")
    if state["images"] != loader.sampler.n_images:
        raise UserError(
            f"config rec: the run in {config.output} was on {state['images']!r:.20} images, here are "
            f"{loader.sampler.n_images}; name those data, or another output; {START_OVER_HINT}"
        )
    if state["config"]["seed"] != config.seed:
        raise UserError(
            f"config seed: {config.seed}, but the run in {config.output} has {state['config']['seed']!r:.20}, by which "
            f"its epoch is dealt; take that; {START_OVER_HINT}"
        )


def _log_resume_point(state: dict[str, Any], config: EasyDict, loader: Loader, world: World) -> None:
    """Says where the run goes on, and what is not as it was."""
    progress = progress_from_checkpoint(state)
    log.info(
        f"Resumes at step {progress.step}: epoch {progress.epoch}, of which {progress.samples_seen} images are done "
        f"({START_OVER_HINT})"
    )
    now = config_values(config)
    for name in sorted(now.keys() | state["config"].keys()):
        before, after = state["config"].get(name), now.get(name)
        if before != after and name not in ("resume", "global_step"):
            log.info(f"Changed: config {name} was {before!r}, is {after!r}")
    if state["data"] != loader.dataset.fingerprint:
        log.warning(f"Changed: the data in {config.rec} are not those that the run began with, though as many images")
    if len(state["ranks"]) != world.size:
        before, after = len(state["ranks"]), world.size
        log.info(
            f"Changed: {before} processes were, {after} are: {config.batch_size * after} images a step; the learning "
            f"rate is for as many, the rest of the epoch is dealt to {after}"
        )


def config_values(config: EasyDict) -> dict[str, Any]:
    """The config as JSON would hold it; of lr_func, its values."""
    fields = {name: value for name, value in config.items() if not callable(value)}
    fields["lr_func"] = [config.lr_func(epoch) for epoch in range(config.num_epoch)]
    return json.loads(json.dumps(fields, default=str))
