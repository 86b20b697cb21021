"""The training loop shared by ArcFace training, knowledge distillation and architecture search.

They differ only in the task that they pass to `train`.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from signal import Signals
from typing import NoReturn

import numpy as np
import torch

from config.base import Config
from utils.datasets.label_check import LabelCheck
from utils.datasets.shared_buffers import HostBatch
from utils.datasets.shared_loader import SharedMemoryLoader
from utils.datasets.transforms import hflip, normalise
from utils.distributed.collectives import run_on_all, run_on_main
from utils.distributed.process_group import World, to_device_async
from utils.distributed.runtime_errors import resume_hint
from utils.distributed.shutdown import GracefulShutdown, Requests
from utils.errors import RetryableError, UserError
from utils.logs.logger import log
from utils.logs.meters import MeanMeter
from utils.logs.run_log import RunLog
from utils.training.checkpointing.progress import TrainProgress, compute_epoch_end_steps
from utils.training.checkpointing.resume import ResumePoint, archive_previous_checkpoints
from utils.training.checkpointing.saving import RunSaver, export_jobs
from utils.training.checkpointing.state import TrainingState
from utils.training.learning_rate import global_batch_size
from utils.training.optimizer_step import OptimizerStep
from utils.training.task import Batch, Task

Verify = Callable[[int], dict[str, float]]  # global step -> accuracy of each evaluation set
DataSource = SharedMemoryLoader | LabelCheck
FROM_SCRATCH = ResumePoint()

# Sent in place of a signal number, so that all ranks stop at the same step when the loader of one rank has failed:
# LOADER_FAILED if its workers died or hang, so that another attempt may succeed, DATA_FAILED if the files are at fault.
LOADER_FAILED, DATA_FAILED = 254, 255


def train(
    task: Task,
    loader: SharedMemoryLoader,
    config: Config,
    world: World,
    verify: Verify | None = None,
    resume_point: ResumePoint = FROM_SCRATCH,
    on_begin: Callable[[], None] | None = None,
) -> int:
    """Trains task.backbone and task.header by the config and returns the last global step.

    Collective: call on all ranks. Writes the exported weights to config.output after every epoch; writes
    checkpoint.pth there after every epoch and every config.save_step steps. Calls `verify` on all ranks every
    config.eval_step steps, and `on_begin` on rank 0 once the files of an earlier run are archived.

    Ctrl-C, SIGTERM and SIGHUP end the run by SystemExit after a checkpoint; SIGUSR1 and SIGUSR2 request a checkpoint.
    Raises UserError if the last step is non-finite, if weights are not finite, which are then not written, or if the
    loader's label check fails, for whose end it waits after the first epoch.
    """
    progress = resume_point.progress
    total_steps = compute_epoch_end_steps(config, loader.sampler, progress)[-1]
    images_per_step = global_batch_size(config, world.size)
    run_log = RunLog(config, progress.step, total_steps, images_per_step, world.is_main)
    optimizer_step, mean_losses, saver = _start_run(task, loader, config, world, resume_point, on_begin)
    requests = Requests()
    with run_log, saver.writer, loader.label_check, GracefulShutdown(world, config.timeout) as shutdown:
        while not progress.is_finished(config):
            epoch = progress.epoch
            task.on_epoch_start(epoch)
            run_log.restart_clock(progress.step)
            lr = optimizer_step.set_learning_rate(epoch)
            for host_batch in _batches(loader, progress, config, world):
                batch = _device_batch(host_batch, task, _augmentation_rng(config, progress, world), world)
                progress = progress.after_step(images_per_step)
                step, is_last_step = progress.step, progress.step == total_steps
                losses, nonfinite = optimizer_step(batch, step)
                mean_losses.add(losses, nonfinite)
                run_log.tick()
                epoch_ended = not loader.sampler.num_batches(progress.samples_seen)
                if step % config.log_step == 0 or requests.log_line or epoch_ended or is_last_step:
                    optimizer_step.nonfinite.flush()
                    run_log.report(step, epoch, mean_losses.compute_and_reset(), lr)
                if verify and config.eval_step and step % config.eval_step == 0:
                    run_log.log_accuracies(step, verify(step))
                    run_log.restart_clock(step)
                if is_last_step:
                    break
                failed = _failed_source(loader, task)
                if failed:
                    shutdown.requested_signal = _failure_code(failed)
                requests = shutdown.agreed_requests(run_log.is_due(step))
                if requests.stop_signal:
                    _stop_run(requests.stop_signal, failed, saver, progress, config)
                if requests.checkpoint:
                    log.info(f"Checkpoint requested after step {step}: it is being written, training continues")
                saver.save_if_due(progress, bool(requests.checkpoint), epoch_ended)
            if not loader.sampler.num_batches(progress.samples_seen):  # else max_steps cut the epoch short
                progress = progress.after_epoch()
            exports = export_jobs(task, progress.step, config, world)
            task.on_epoch_end(epoch, progress.step)
            saver.save_epoch(exports, progress)
            run_on_main(world, loader.label_check.raise_pending_error)
    optimizer_step.nonfinite.raise_if_last_step_was_nonfinite()
    return progress.step


def _start_run(
    task: Task,
    loader: SharedMemoryLoader,
    config: Config,
    world: World,
    resume_point: ResumePoint,
    on_begin: Callable[[], None] | None,
) -> tuple[OptimizerStep, MeanMeter, RunSaver]:
    """Restores the state of the resume point and archives the files of an earlier run. Collective."""
    optimizer_step = OptimizerStep(task, loader.dataset.keys, config, world)
    mean_losses = MeanMeter(world)
    task.on_train_start(optimizer_step.optimizer)
    state = TrainingState(task, optimizer_step, mean_losses, loader, config, world)
    state.load_state_dict(resume_point)
    if world.is_main:
        archive_previous_checkpoints(Path(config.output), resume_point, task.export_suffixes)
        if on_begin:
            on_begin()
    task.backbone.train()
    saver = RunSaver(state, optimizer_step.nonfinite, config)
    if config.save_initial and not resume_point.progress.step:
        saver.save_weights(export_jobs(task, 0, config, world))
    return optimizer_step, mean_losses, saver


def _batches(loader: SharedMemoryLoader, progress: TrainProgress, config: Config, world: World) -> Iterator[HostBatch]:
    """Yields the remaining batches of the current epoch on the host.

    Collective for the first batch: a UserError of any rank while it is read ends all ranks.
    """
    batches = loader.iter_epoch(progress.epoch, progress.samples_seen)
    try:
        first = run_on_all(world, lambda: next(batches, None))
    except UserError:
        if progress.step:  # there is a checkpoint, at the latest that of the epoch before
            _log_data_failure(config)
        raise
    if first is not None:
        yield first
        yield from batches


def _device_batch(host_batch: HostBatch, task: Task, generator: torch.Generator, world: World) -> Batch:
    """Returns the network's input on the device: augmented, flipped with probability 0.5 each, and normalised."""
    flipped = torch.rand(len(host_batch.images), generator=generator) < 0.5  # (B,)
    images = task.augment(to_device_async(host_batch.images, world.device), generator)  # (B, 112, 112, 3) uint8
    images = normalise(hflip(images, to_device_async(flipped, world.device)))  # (B, 3, 112, 112)
    return Batch(images, to_device_async(host_batch.labels, world.device), host_batch.indices, flipped)


def _augmentation_rng(config: Config, progress: TrainProgress, world: World) -> torch.Generator:
    """Returns the RNG for augmentation, seeded by (seed, rank, step), so that a resumed run draws the same values.

    It is on the CPU, so that its values are the same for any device and the flip flags are known without waiting.
    """
    seed = np.random.SeedSequence([config.seed, world.rank, progress.step]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(seed[0]))


def _failed_source(loader: SharedMemoryLoader, task: Task) -> DataSource | None:
    """Returns the first of this rank that has failed: the training loader, one of the task's, or the label check."""
    sources: tuple[DataSource, ...] = (loader, *task.loaders, loader.label_check)
    return next((source for source in sources if source.pending_error), None)


def _failure_code(failed: DataSource) -> int:
    """Returns the code that stands for the failure in place of a signal number."""
    failure = failed.pending_error
    return DATA_FAILED if isinstance(failure, UserError) and not isinstance(failure, RetryableError) else LOADER_FAILED


def _stop_run(signal: int, failed: DataSource | None, saver: RunSaver, progress: TrainProgress, config: Config) -> None:
    """Ends the run after a checkpoint, because of a signal or failed data. Collective: call on all ranks.

    After a non-finite step there is no checkpoint: failed data still end the run, while a signal waits for the
    next finite step and this function returns.
    """
    saved = saver.save_before_stop(progress)
    if signal >= LOADER_FAILED:
        _raise_data_failure(signal, failed, config)
    if saved:
        log.warning(f"Stopped by {Signals(signal).name} after step {progress.step}: {resume_hint(config)}")
        raise SystemExit(128 + signal)


def _raise_data_failure(code: int, failed: DataSource | None, config: Config) -> NoReturn:
    """Raises the failure on the rank where it happened.

    Raises RetryableError on the others if another attempt may succeed, else SystemExit.
    """
    _log_data_failure(config)
    if failed:
        failed.raise_pending_error()
    if code == LOADER_FAILED:
        raise RetryableError("the loader of another process failed", fix=resume_hint(config))
    raise SystemExit(2)


def _log_data_failure(config: Config) -> None:
    """Logs that the run ends because of its images or labels, and how to resume it."""
    log.warning(f"The run ends because of its data; once they can be read and are right, {resume_hint(config)}")
