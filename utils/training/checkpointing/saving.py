"""Saving of a training run: weights after every epoch, checkpoint.pth as well every config.save_step steps."""

from functools import partial
from pathlib import Path

from config.base import Config
from utils.checkpoints.async_writer import AsyncFileWriter, WriteJobs
from utils.checkpoints.run_file import CHECKPOINT_FILE, first_nonfinite_entry, write_checkpoint
from utils.checkpoints.state_dicts import first_nonfinite
from utils.checkpoints.weights import save_atomic
from utils.distributed.collectives import run_on_main
from utils.distributed.process_group import World
from utils.logs.logger import log
from utils.training.checkpointing.progress import TrainProgress
from utils.training.checkpointing.state import TrainingState, gather_full_state_dict
from utils.training.nonfinite import NonFiniteGuard, require_finite
from utils.training.task import Task


class RunSaver:
    """Decides when to save and passes the files to a background writer, which the caller enters as a context.

    Every method is collective: call on all ranks. Each raises UserError if what it should save is not finite.
    """

    def __init__(self, state: TrainingState, nonfinite: NonFiniteGuard, config: Config) -> None:
        self.state = state
        self.nonfinite = nonfinite
        self.config = config
        self.writer = AsyncFileWriter()
        self._is_due = False  # a checkpoint is due; it waits while steps are non-finite

    def save_weights(self, exports: WriteJobs) -> None:
        """Writes exported weights without a checkpoint."""
        self.writer.submit(exports)

    def save_if_due(self, progress: TrainProgress, requested: bool, epoch_ended: bool) -> None:
        """Writes a checkpoint every config.save_step steps or on request, but not after a non-finite step.

        At the end of an epoch it leaves the checkpoint to `save_epoch`.
        """
        self._is_due |= requested or progress.step % self.config.save_step == 0
        if self._is_due and not epoch_ended and not self.nonfinite.last_step_was_nonfinite():
            self.writer.submit(_checkpoint_jobs(self.state, progress, self.config))
            self._is_due = False

    def save_epoch(self, exports: WriteJobs, progress: TrainProgress) -> None:
        """Writes the exported weights of an epoch and, unless its last step was non-finite, a checkpoint."""
        self._is_due = self.nonfinite.last_step_was_nonfinite()
        self.writer.submit(exports, {} if self._is_due else _checkpoint_jobs(self.state, progress, self.config))

    def save_before_stop(self, progress: TrainProgress) -> bool:
        """Writes a checkpoint and waits for it. Returns False, with nothing written, after a non-finite step."""
        if self.nonfinite.last_step_was_nonfinite():
            return False
        self.writer.submit(_checkpoint_jobs(self.state, progress, self.config))
        self.writer.close()
        return True


def export_jobs(task: Task, step: int, config: Config, world: World) -> WriteJobs:
    """Copies the weights that the task exports and returns the jobs that write their files; {} except on rank 0.

    Collective: call on all ranks. Raises UserError if a weight is not finite.
    """
    weights = {
        name: gather_full_state_dict(module, dict(module.state_dict()), world)
        for name, module in task.exported_modules(step).items()
    }
    run_on_main(world, lambda: require_finite(first_nonfinite(weights), step, config.output))
    if not world.is_main:
        return {}
    folder = Path(config.output)
    jobs: WriteJobs = {name: partial(save_atomic, folder / name, content) for name, content in weights.items()}
    *_, (last_name, write_last) = jobs.items()

    def write_last_and_log() -> None:
        write_last()
        log.info(f"Saved step {step} in {config.output}")

    return jobs | {last_name: write_last_and_log}


def _checkpoint_jobs(state: TrainingState, progress: TrainProgress, config: Config) -> WriteJobs:
    """Copies the training state and returns the job that writes checkpoint.pth; {} except on rank 0.

    Collective: call on all ranks. Raises UserError if the state is not finite.
    """
    content = state.state_dict(progress)
    name = first_nonfinite_entry(content) if content is not None else None
    run_on_main(state.world, lambda: require_finite(name, progress.step, config.output))
    if content is None:
        return {}
    return {CHECKPOINT_FILE: partial(write_checkpoint, Path(config.output), config.keep, content)}
