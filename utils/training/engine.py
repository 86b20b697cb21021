"""The training loop: the only one. ArcFace training, distillation and the search differ in the task they hand to it."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from signal import Signals

import numpy as np
import torch
from easydict import EasyDict

from utils.checkpoints.async_writer import AsyncFileWriter, WriteJobs
from utils.checkpoints.run_file import CHECKPOINT_FILE, first_not_finite_entry, write_checkpoint
from utils.checkpoints.state_dicts import first_not_finite
from utils.checkpoints.weights import save_atomic
from utils.datasets.shared_buffers import HostBatch
from utils.datasets.shared_loader import Loader
from utils.datasets.transforms import hflip, normalise
from utils.distributed.collectives import run_on_all, run_on_main
from utils.distributed.process_group import World, to_device_async
from utils.distributed.runtime_errors import resume_hint
from utils.distributed.shutdown import GracefulShutdown, Requests
from utils.errors import RetryableError, UserError
from utils.logs.meters import MeanMeter
from utils.logs.run_log import RunLog, log
from utils.training.nonfinite import require_finite
from utils.training.optimizer_step import OptimizerStep
from utils.training.progress import TrainProgress, epoch_ends
from utils.training.resume import ResumePoint, archive_previous_checkpoints
from utils.training.state import TrainingState, gather_full_state_dict
from utils.training.task import Batch, Task

Verify = Callable[[int], dict[str, float]]  # global step -> accuracy of each verification set
FROM_SCRATCH = ResumePoint()
# In place of a signal's number, by which all processes stop at one step: a process soon has no more images, for its
# workers died or hang (another try may go well), or for the files are wrong.
LOADER_FAILED, DATA_FAILED = 254, 255
_DATA_FAILED = "The run ends, for the images behind this step cannot be read; once they can, {}"


def train(
    task: Task,
    loader: Loader,
    config: EasyDict,
    world: World,
    verify: Verify | None = None,
    resume_point: ResumePoint = FROM_SCRATCH,
    on_begin: Callable[[], None] | None = None,
) -> int:
    """Trains task.backbone and task.header by the config and returns the last global step.

    What the task has learned is written to config.output at the end of every epoch, and checkpoint.pth there, by which
    a run goes on, then and every config.save_step steps. `verify` is called on every process each config.eval_step
    steps. `on_begin` is called on the main process once the files of an earlier run are set aside. Ctrl-C, SIGTERM and
    SIGHUP end it by SystemExit, after a checkpoint; SIGUSR1 and SIGUSR2 leave one. Raises UserError where its last step
    is bad, or what it has learned is not finite, which is not written.
    """
    progress = resume_point.progress
    total_steps = epoch_ends(config, loader.sampler, progress)[-1]
    images_a_step = config.batch_size * world.size
    run_log = RunLog(config, progress.step, total_steps, images_a_step, world.is_main)
    optimizer_step = OptimizerStep(task, loader.dataset.keys, config, world)
    losses = MeanMeter(world)
    task.on_train_start(optimizer_step.optimizer)
    state = TrainingState(task, optimizer_step, losses, loader, config, world)
    state.load_state_dict(resume_point)
    if world.is_main:
        archive_previous_checkpoints(Path(config.output), resume_point, task.suffixes)
        if on_begin:
            on_begin()
    task.backbone.train()
    writer = AsyncFileWriter()
    due = False  # a checkpoint, which is put off while steps are bad
    requests = Requests()
    if config.save_initial and not progress.step:
        writer.submit(_export_jobs(task, 0, config, world))

    # ------------------------------------------------------------------ the loop
    with run_log, writer, GracefulShutdown(world, config.timeout) as shutdown:
        while not progress.is_finished(config):
            epoch = progress.epoch
            task.on_epoch_start(epoch)
            run_log.resume_clock(progress.step)
            lr = optimizer_step.set_learning_rate(epoch)
            for host_batch in _batches_on_all(loader.epoch(epoch, progress.samples_seen), progress, config, world):
                batch = _device_batch(host_batch, task, _augmentation_rng(config, progress, world), world)
                progress = progress.after_step(images_a_step)
                step = progress.step
                named, bad = optimizer_step(batch, step)

                losses.add(named, bad)
                run_log.tick()
                left = loader.sampler.steps(progress.samples_seen)  # of the epoch
                if step % config.log_step == 0 or requests.report or not left or step == total_steps:
                    optimizer_step.nonfinite.flush()
                    run_log.report(step, epoch, losses.compute_and_reset(), lr)
                if verify and config.eval_step and step % config.eval_step == 0:
                    run_log.verified(step, verify(step))
                    run_log.resume_clock(step)
                if step == total_steps:
                    break
                failed = next((each for each in (loader, *task.loaders) if each.failure), None)
                if failed:
                    shutdown.signal = _failure_code(failed)
                requests = shutdown.agreed_requests(run_log.is_due(step))
                if requests.signal:
                    if kept := not optimizer_step.nonfinite.last_step_was_nonfinite():
                        writer.submit(_checkpoint_jobs(state, progress, config))
                        writer.close()
                    _end_if_data_failed(requests.signal, failed, config)
                    if kept:
                        log.warning(
                            f"Stopped by {Signals(requests.signal).name} after step {step}: {resume_hint(config)}"
                        )
                        raise SystemExit(128 + requests.signal)
                if requests.save:
                    log.info(f"Asked for a checkpoint after step {step}: it is written, and the run goes on")
                due |= bool(requests.save) or step % config.save_step == 0
                if due and left and not optimizer_step.nonfinite.last_step_was_nonfinite():
                    writer.submit(_checkpoint_jobs(state, progress, config))
                    due = False
            if not loader.sampler.steps(progress.samples_seen):
                progress = progress.after_epoch()
            published = _export_jobs(task, progress.step, config, world)
            task.on_epoch_end(epoch, progress.step)
            due = optimizer_step.nonfinite.last_step_was_nonfinite()
            writer.submit(published, {} if due else _checkpoint_jobs(state, progress, config))
    optimizer_step.nonfinite.raise_if_last_step_was_nonfinite()
    return progress.step


def _batches_on_all(
    batches: Iterator[HostBatch], progress: TrainProgress, config: EasyDict, world: World
) -> Iterator[HostBatch]:
    """The batches of an epoch. A UserError over the first ones ends all processes."""
    try:
        first = run_on_all(world, lambda: next(batches, None))
    except UserError:
        if progress.step:  # the checkpoint of the epoch before stands
            log.warning(_DATA_FAILED.format(resume_hint(config)))
        raise
    if first is not None:
        yield first
        yield from batches


def _failure_code(failed: Loader) -> int:
    """What stands for a loader's failure in place of a signal's number."""
    final = isinstance(failed.failure, UserError) and not isinstance(failed.failure, RetryableError)
    return DATA_FAILED if final else LOADER_FAILED


def _end_if_data_failed(number: int, failed: Loader | None, config: EasyDict) -> None:
    """Where the run was stopped because a process soon has no more images, raises what is wrong: in the process whose
    loader failed that failure itself, in others SystemExit, or PassingError where another try may go well."""
    if number < LOADER_FAILED:
        return
    log.warning(_DATA_FAILED.format(resume_hint(config)))
    if failed:
        failed.raise_failure()
    if number == LOADER_FAILED:
        raise RetryableError(f"the loader of another process failed; {resume_hint(config)}")
    raise SystemExit(2)


def _device_batch(host_batch: HostBatch, task: Task, generator: torch.Generator, world: World) -> Batch:
    """The batch as the network takes it: each image mirrored with probability 0.5, all normalised."""
    flipped = torch.rand(len(host_batch.images), generator=generator) < 0.5  # (B,)
    images = task.augment(to_device_async(host_batch.images, world.device), generator)  # (B, 112, 112, 3) uint8
    images = normalise(hflip(images, to_device_async(flipped, world.device)))  # (B, 3, 112, 112)
    return Batch(images, to_device_async(host_batch.labels, world.device), host_batch.indices, flipped)


def _augmentation_rng(config: EasyDict, progress: TrainProgress, world: World) -> torch.Generator:
    """Of mirroring and the like, always the same at this step of this process: a resumed run draws what one never
    stopped does. On the CPU, so that any device does the same and the flags are known without asking it."""
    seed = np.random.SeedSequence([config.seed, world.rank, progress.step]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(seed[0]))


def _export_jobs(task: Task, step: int, config: EasyDict, world: World) -> WriteJobs:
    """What writes the published files; every process takes part."""
    weights = {
        name: gather_full_state_dict(module, dict(module.state_dict()), world)
        for name, module in task.exported_modules(step).items()
    }
    run_on_main(world, lambda: require_finite(first_not_finite(weights), step, config.output))
    if not world.is_main:
        return {}
    folder = Path(config.output)
    files: WriteJobs = {name: partial(save_atomic, folder / name, content) for name, content in weights.items()}
    *_, (last, write) = files.items()

    def write_last() -> None:
        write()
        log.info(f"Saved step {step} in {config.output}")

    return files | {last: write_last}


def _checkpoint_jobs(state: TrainingState, progress: TrainProgress, config: EasyDict) -> WriteJobs:
    """What writes checkpoint.pth; every process takes part."""
    content = state.state_dict(progress)
    found = first_not_finite_entry(content) if content is not None else None
    run_on_main(state.world, lambda: require_finite(found, progress.step, config.output))
    return (
        {}
        if content is None
        else {CHECKPOINT_FILE: partial(write_checkpoint, Path(config.output), config.keep, content)}
    )
