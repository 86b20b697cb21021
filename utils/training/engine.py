"""The training loop: the only one. ArcFace training, distillation and the search differ in the task they hand to it."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from signal import Signals

import numpy as np
import torch
from easydict import EasyDict

from utils.checkpoints.async_writer import Files, Writer
from utils.checkpoints.run_file import FILE, not_finite, write_checkpoint
from utils.checkpoints.state_dicts import first_not_finite
from utils.checkpoints.weights import write_file
from utils.datasets.face_dataset import Loader
from utils.datasets.shared_buffers import Decoded
from utils.datasets.transforms import mirror, normalise
from utils.distributed.collectives import on_main, together
from utils.distributed.process_group import World, to_device
from utils.distributed.runtime_errors import again
from utils.distributed.shutdown import Requests, Stop
from utils.errors import PassingError, UserError
from utils.logs.meters import RunningMean
from utils.logs.run_log import RunLog, log
from utils.training.nonfinite import require_finite
from utils.training.optimizer_step import Update
from utils.training.progress import Position, epoch_ends
from utils.training.resume import Start, archive_earlier_run
from utils.training.state import RunState, whole
from utils.training.task import Batch, Task

Verify = Callable[[int], dict[str, float]]  # global step -> accuracy of each verification set
ANEW = Start()
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
    start: Start = ANEW,
    on_begin: Callable[[], None] | None = None,
) -> int:
    """Trains task.backbone and task.header by the config and returns the last global step.

    What the task has learned is written to config.output at the end of every epoch, and checkpoint.pth there, by which
    a run goes on, then and every config.save_step steps. `verify` is called on every process each config.eval_step
    steps. `on_begin` is called on the main process once the files of an earlier run are set aside. Ctrl-C, SIGTERM and
    SIGHUP end it by SystemExit, after a checkpoint; SIGUSR1 and SIGUSR2 leave one. Raises UserError where its last step
    is bad, or what it has learned is not finite, which is not written.
    """
    position = start.position
    total_steps = epoch_ends(config, loader.sampler, position)[-1]
    images_a_step = config.batch_size * world.size
    run_log = RunLog(config, position.step, total_steps, images_a_step, world.is_main)
    update = Update(task, loader.dataset.keys, config, world)
    losses = RunningMean(world)
    task.start(update.optimizer)
    state = RunState(task, update, losses, loader, config, world)
    state.restore(start)
    if world.is_main:
        archive_earlier_run(Path(config.output), start, task.suffixes)
        if on_begin:
            on_begin()
    task.backbone.train()
    writer = Writer()
    due = False  # a checkpoint, which is put off while steps are bad
    asked = Requests()
    if config.save_initial and not position.step:
        writer.submit(_published(task, 0, config, world))

    # ------------------------------------------------------------------ the loop
    with run_log, writer, Stop(world, config.timeout) as stop:
        while not position.is_last(config):
            epoch = position.epoch
            task.start_epoch(epoch)
            run_log.resume_clock(position.step)
            lr = update.set_learning_rate(epoch)
            for decoded in _agreed(loader.epoch(epoch, position.seen), position, config, world):
                batch = _on_device(decoded, task, _generator(config, position, world), world)
                position = position.after_step(images_a_step)
                step = position.step
                named, bad = update(batch, step)

                losses.add(named, bad)
                run_log.tick()
                left = loader.sampler.steps(position.seen)  # of the epoch
                if step % config.log_step == 0 or asked.report or not left or step == total_steps:
                    update.bad_steps.check()
                    run_log.report(step, epoch, losses.take(), lr)
                if verify and config.eval_step and step % config.eval_step == 0:
                    run_log.verified(step, verify(step))
                    run_log.resume_clock(step)
                if step == total_steps:
                    break
                failed = next((each for each in (loader, *task.loaders) if each.failure), None)
                if failed:
                    stop.signal = _failure_code(failed)
                asked = stop.asked(run_log.is_due(step))
                if asked.signal:
                    if kept := not update.bad_steps.is_last():
                        writer.submit(_checkpoint(state, position, config))
                        writer.close()
                    _end_if_data_failed(asked.signal, failed, config)
                    if kept:
                        log.warning(f"Stopped by {Signals(asked.signal).name} after step {step}: {again(config)}")
                        raise SystemExit(128 + asked.signal)
                if asked.save:
                    log.info(f"Asked for a checkpoint after step {step}: it is written, and the run goes on")
                due |= bool(asked.save) or step % config.save_step == 0
                if due and left and not update.bad_steps.is_last():
                    writer.submit(_checkpoint(state, position, config))
                    due = False
            if not loader.sampler.steps(position.seen):
                position = position.after_epoch()
            published = _published(task, position.step, config, world)
            task.end_epoch(epoch, position.step)
            due = update.bad_steps.is_last()
            writer.submit(published, {} if due else _checkpoint(state, position, config))
    update.bad_steps.check_end()
    return position.step


def _agreed(batches: Iterator[Decoded], position: Position, config: EasyDict, world: World) -> Iterator[Decoded]:
    """The batches of an epoch. A UserError over the first ones ends all processes."""
    try:
        first = together(world, lambda: next(batches, None))
    except UserError:
        if position.step:  # the checkpoint of the epoch before stands
            log.warning(_DATA_FAILED.format(again(config)))
        raise
    if first is not None:
        yield first
        yield from batches


def _failure_code(failed: Loader) -> int:
    """What stands for a loader's failure in place of a signal's number."""
    final = isinstance(failed.failure, UserError) and not isinstance(failed.failure, PassingError)
    return DATA_FAILED if final else LOADER_FAILED


def _end_if_data_failed(number: int, failed: Loader | None, config: EasyDict) -> None:
    """Where the run was stopped because a process soon has no more images, raises what is wrong: in the process whose
    loader failed that failure itself, in others SystemExit, or PassingError where another try may go well."""
    if number < LOADER_FAILED:
        return
    log.warning(_DATA_FAILED.format(again(config)))
    if failed:
        failed.raise_failure()
    if number == LOADER_FAILED:
        raise PassingError(f"the loader of another process failed; {again(config)}")
    raise SystemExit(2)


def _on_device(decoded: Decoded, task: Task, generator: torch.Generator, world: World) -> Batch:
    """The batch as the network takes it: each image mirrored with probability 0.5, all normalised."""
    mirrored = torch.rand(len(decoded.images), generator=generator) < 0.5  # (B,)
    images = task.augment(to_device(decoded.images, world.device), generator)  # (B, 112, 112, 3) uint8
    images = normalise(mirror(images, to_device(mirrored, world.device)))  # (B, 3, 112, 112)
    return Batch(images, to_device(decoded.labels, world.device), decoded.indices, mirrored)


def _generator(config: EasyDict, position: Position, world: World) -> torch.Generator:
    """Of mirroring and the like, always the same at this step of this process: a resumed run draws what one never
    stopped does. On the CPU, so that any device does the same and the flags are known without asking it."""
    seed = np.random.SeedSequence([config.seed, world.rank, position.step]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(seed[0]))


def _published(task: Task, step: int, config: EasyDict, world: World) -> Files:
    """What writes the published files; every process takes part."""
    weights = {name: whole(module, dict(module.state_dict()), world) for name, module in task.files(step).items()}
    on_main(world, lambda: require_finite(first_not_finite(weights), step, config.output))
    if not world.is_main:
        return {}
    folder = Path(config.output)
    files: Files = {name: partial(write_file, folder / name, content) for name, content in weights.items()}
    *_, (last, write) = files.items()

    def write_last() -> None:
        write()
        log.info(f"Saved step {step} in {config.output}")

    return files | {last: write_last}


def _checkpoint(state: RunState, position: Position, config: EasyDict) -> Files:
    """What writes checkpoint.pth; every process takes part."""
    content = state.take(position)
    found = not_finite(content) if content is not None else None
    on_main(state.world, lambda: require_finite(found, position.step, config.output))
    return {} if content is None else {FILE: partial(write_checkpoint, Path(config.output), config.keep, content)}
