"""The training loop: the only one. ArcFace training, distillation and the search differ in the task they hand to it."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from signal import Signals
from typing import Any

import numpy as np
import torch
from easydict import EasyDict
from torch import Tensor, nn

from utils.bad_steps import BadSteps
from utils.checkpoint import write_file
from utils.dataset import BatchSampler, Loader
from utils.distributed import World, autocast, mean_over
from utils.faults import AGAIN, told
from utils.images import mirror, normalise
from utils.loader import Decoded
from utils.resume import FILE, Position, Start, make_way, write_checkpoint
from utils.run_log import RunLog, log
from utils.run_state import RunState, whole
from utils.stopping import Stop
from utils.task import Batch, Task
from utils.writer import Writer

Verify = Callable[[int], dict[str, float]]  # global step -> accuracy of each verification set
BEGINNING, ANEW = Position(), Start()


def epoch_ends(config: EasyDict, sampler: BatchSampler, position: Position = BEGINNING) -> list[int]:
    """The global step at the end of each epoch that a run has by the config, the last perhaps not whole.

    position: where the run is. The steps of an epoch depend on the number of processes, which may have been another.
    """
    whole, first = sampler.steps(), position.step + sampler.steps(position.seen)
    left = config.num_epoch - position.epoch  # epochs, with the one under way
    total_steps = config.max_steps or (first + (left - 1) * whole if left > 0 else position.step)
    if position.step >= total_steps:
        return list(position.ends) or [position.step]
    return [*position.ends, *range(first, total_steps, whole), total_steps]


def train(
    task: Task, loader: Loader, config: EasyDict, world: World, verify: Verify | None = None, start: Start = ANEW
) -> int:
    """Trains task.backbone and task.header by the config and returns the last global step.

    What the task has learned is written to config.output at the end of every epoch, and checkpoint.pth there, by which
    a run goes on, then and every config.save_step steps. `verify` is called on every process each config.eval_step
    steps. Ctrl-C and SIGTERM end it by SystemExit, after a checkpoint.
    """
    position = start.position
    total_steps = epoch_ends(config, loader.sampler, position)[-1]
    images_a_step = config.batch_size * world.size
    run_log = RunLog(config, position.step, total_steps, images_a_step, world.is_main)
    optimizer = make_optimizer(task, config)
    scaler = torch.amp.GradScaler(world.device.type, enabled=config.precision == "fp16")
    # Of mirroring and the like. On the CPU, so that any device does the same and the flags are known without asking it.
    generator = torch.Generator()
    losses = RunningMean(world)
    bad_steps = BadSteps(task.backbone, loader.dataset.keys, config, world)
    task.start(optimizer)
    state = RunState(task, optimizer, scaler, losses, loader.sampler.n_images, config, world)
    state.restore(start)
    if world.is_main:
        make_way(Path(config.output), start)
    task.backbone.train()
    writer = Writer()
    if config.save_initial and not position.step:
        _save(writer, task, 0, config, world)

    # ------------------------------------------------------------------ the loop
    with told(config), run_log, writer, Stop(world, config.timeout) as stop:
        while position.step < total_steps:
            epoch = position.epoch
            task.start_epoch(epoch)
            run_log.resume_clock(position.step)
            lr = _set_learning_rate(optimizer, config, epoch, world)
            for decoded in loader.epoch(epoch, position.seen):
                batch = _on_device(decoded, task, _seeded(generator, config, position, world), world)
                bad_steps.before()
                with autocast(world, config.precision):
                    named = task(batch)
                scaler.scale(named["Loss"]).backward()
                scaler.unscale_(optimizer)
                norm = _clip(task.backbone, config.clip_norm)
                bad = bad_steps.judge(position.step + 1, named["Loss"], norm, batch.indices, scaler.is_enabled())
                if not scaler.is_enabled():
                    optimizer.found_inf = bad.float()  # type: ignore[attr-defined]  # then the fused step does nothing
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad(set_to_none=True)

                position = position.after_step(images_a_step)
                step = position.step
                losses.add(named, bad)
                run_log.tick()
                if step % config.log_step == 0 or step == total_steps:
                    bad_steps.check(lr)
                    run_log.report(step, epoch, losses.take(), lr)
                if verify and config.eval_step and step % config.eval_step == 0:
                    run_log.verified(step, verify(step))
                    run_log.resume_clock(step)
                if step == total_steps:
                    break
                if number := stop.asked():
                    _checkpoint(writer, state, position, config)
                    writer.close()
                    log.warning(f"Stopped by {Signals(number).name} after step {step}: {AGAIN}")
                    raise SystemExit(128 + number)
                if step % config.save_step == 0 and loader.sampler.steps(position.seen):
                    _checkpoint(writer, state, position, config)
            if not loader.sampler.steps(position.seen):
                position = position.after_epoch()
            _save(writer, task, position.step, config, world)
            task.end_epoch(epoch, position.step)
            _checkpoint(writer, state, position, config)
    return position.step


def _on_device(decoded: Decoded, task: Task, generator: torch.Generator, world: World) -> Batch:
    """The batch as the network takes it: each image mirrored with probability 0.5, all normalised."""
    mirrored = torch.rand(len(decoded.images), generator=generator) < 0.5  # (B,)
    images = decoded.images.to(world.device, non_blocking=True)  # (B, 112, 112, 3) uint8
    images = task.augment(images, generator)
    images = normalise(mirror(images, mirrored.to(world.device, non_blocking=True)))  # (B, 3, 112, 112)
    return Batch(images, decoded.labels.to(world.device, non_blocking=True), decoded.indices, mirrored)


def make_optimizer(task: Task, config: EasyDict) -> torch.optim.SGD:
    """Of both networks' parameters that learn."""
    parameters = [p for module in (task.backbone, task.header) for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(
        parameters,
        lr=config.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        fused=True,  # takes the fp16 scaler's verdict on the device, without waiting for it
    )
    # The fused update leaves the momentum uninitialised where fp16 overflows in the very first step (torch 2.13).
    for parameter in parameters:
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def _set_learning_rate(optimizer: torch.optim.Optimizer, config: EasyDict, epoch: int, world: World) -> float:
    """The epoch's rate: config.lr is for 512 images a step and scales with the images there really are."""
    lr = config.lr * config.batch_size * world.size / 512 * config.lr_func(epoch)
    for group in optimizer.param_groups:
        group["lr"] = lr
    return lr


def _seeded(generator: torch.Generator, config: EasyDict, position: Position, world: World) -> torch.Generator:
    """The generator, as it always is at this step of this process: a resumed run draws what one never stopped does."""
    seed = np.random.SeedSequence([config.seed, world.rank, position.step]).generate_state(1, np.uint64)
    return generator.manual_seed(int(seed[0]))


def _clip(backbone: nn.Module, largest: float) -> Tensor:
    """Scales the gradient down to the largest norm, if that is not 0; returns the norm it had: ()."""
    parameters = [parameter for parameter in backbone.parameters() if parameter.grad is not None]
    if largest:
        return nn.utils.clip_grad_norm_(parameters, largest)
    return nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])


def _save(writer: Writer, task: Task, step: int, config: EasyDict, world: World) -> None:
    """Has the published files written; every process takes part."""
    weights = {name: whole(module, dict(module.state_dict()), world) for name, module in task.files(step).items()}
    if world.is_main:
        folder = Path(config.output)
        writer.submit({name: partial(write_file, folder / name, content) for name, content in weights.items()})
        log.info(f"Saved step {step} in {config.output}")


def _checkpoint(writer: Writer, state: RunState, position: Position, config: EasyDict) -> None:
    """Has checkpoint.pth written; every process takes part."""
    content = state.take(position)
    if content is not None:
        writer.submit({FILE: partial(write_checkpoint, Path(config.output), config.keep, content)})


class RunningMean:
    """Means of named losses, summed on the device: reading them is the only time the host waits for it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.sums: dict[str, Tensor] = {}
        self.count = torch.zeros((), device=world.device)

    def add(self, named: dict[str, Tensor], bad: Tensor) -> None:
        """Adds a step's, unless it is bad: (), bool."""
        for name, value in named.items():
            value = torch.where(bad, 0.0, value.detach().float())
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.count = self.count + ~bad

    def take(self) -> dict[str, float]:
        """The means since the last take, over all processes."""
        means = mean_over(torch.stack(list(self.sums.values())) / self.count, self.world).tolist()
        named = dict(zip(self.sums, means, strict=True))
        self.load_state({"sums": {}, "count": torch.zeros(())})
        return named

    def state(self) -> dict[str, Any]:
        return {"sums": self.sums, "count": self.count}

    def load_state(self, state: dict[str, Any]) -> None:
        self.sums = {name: value.to(self.world.device) for name, value in state["sums"].items()}
        self.count = state["count"].to(self.world.device)
