"""The training loop: the only one. ArcFace training, distillation and the search differ in the task they hand to it."""

import math
from collections.abc import Callable, Sized

import torch
from easydict import EasyDict
from torch import Tensor, nn

from utils.dataset import Loader
from utils.distributed import World, autocast, mean_over
from utils.errors import UserError
from utils.images import mirror, normalise
from utils.loader import Decoded
from utils.run_log import RunLog, log
from utils.task import Batch, Task

Verify = Callable[[int], dict[str, float]]  # global step -> accuracy of each verification set


def epoch_ends(config: EasyDict, loader: Sized) -> list[int]:
    """The global step at the end of each epoch that a run has by the config, the last perhaps not whole."""
    total_steps = config.max_steps or config.num_epoch * len(loader)
    return [*range(len(loader), total_steps, len(loader)), total_steps]


def train(task: Task, loader: Loader, config: EasyDict, world: World, verify: Verify | None = None) -> int:
    """Trains task.backbone and task.header by the config and returns the last global step.

    The task saves them in config.output at the end of every epoch. `verify` is called on every process each
    config.eval_step steps.
    """
    ends = epoch_ends(config, loader)
    total_steps = ends[-1]
    run_log = RunLog(config, total_steps, config.batch_size * world.size, world.is_main)
    optimizer = _sgd(task, config)
    scaler = torch.amp.GradScaler(world.device.type, enabled=config.precision == "fp16")
    # Of the mirroring. On the CPU, so that any device mirrors the same and the flags are known without asking it.
    generator = torch.Generator().manual_seed(config.seed + world.rank)
    losses = _RunningMean(world)
    step = 0
    if config.save_initial:
        _save(task, step, config, world)
    task.backbone.train()
    task.start(optimizer)

    # ------------------------------------------------------------------ the loop
    for epoch in range(len(ends)):
        task.start_epoch(epoch)
        run_log.resume_clock(step)
        lr = _set_learning_rate(optimizer, config, epoch, world)
        for decoded in loader.epoch(epoch):
            batch = _on_device(decoded, task, generator, world)
            with autocast(world, config.precision):
                named = task(batch)
            scaler.scale(named["Loss"]).backward()
            scaler.unscale_(optimizer)
            if config.clip_norm:
                nn.utils.clip_grad_norm_(task.backbone.parameters(), config.clip_norm)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)

            step += 1
            losses.add(named)
            run_log.tick()
            if step % config.log_step == 0 or step == total_steps:
                run_log.report(step, epoch, _finite(losses.take(), step, lr), lr)
            if verify and config.eval_step and step % config.eval_step == 0:
                run_log.verified(step, verify(step))
                run_log.resume_clock(step)
            if step == total_steps:
                break
        _save(task, step, config, world)
        task.end_epoch(epoch, step)

    run_log.close()
    return step


def _on_device(decoded: Decoded, task: Task, generator: torch.Generator, world: World) -> Batch:
    """The batch as the network takes it: each image mirrored with probability 0.5, all normalised."""
    mirrored = torch.rand(len(decoded.images), generator=generator) < 0.5  # (B,)
    images = decoded.images.to(world.device, non_blocking=True)  # (B, 112, 112, 3) uint8
    images = task.augment(images, generator)
    images = normalise(mirror(images, mirrored.to(world.device, non_blocking=True)))  # (B, 3, 112, 112)
    return Batch(images, decoded.labels.to(world.device, non_blocking=True), decoded.indices, mirrored)


def _sgd(task: Task, config: EasyDict) -> torch.optim.SGD:
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


def _save(task: Task, step: int, config: EasyDict, world: World) -> None:
    if world.is_main:
        task.save(config.output, step)
        log.info(f"Saved step {step} in {config.output}")


def _finite(losses: dict[str, float], step: int, lr: float) -> dict[str, float]:
    if not all(math.isfinite(value) for value in losses.values()):
        raise UserError(f"loss is not finite by step {step}: {losses} (learning rate {lr:g}); lower lr, or try fp32")
    return losses


class _RunningMean:
    """Means of named losses, summed on the device: reading them is the only time the host waits for it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.sums: dict[str, Tensor] = {}
        self.count = 0

    def add(self, named: dict[str, Tensor]) -> None:
        for name, value in named.items():
            value = value.detach().float()
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.count += 1

    def take(self) -> dict[str, float]:
        """The means since the last take, over all processes."""
        means = mean_over(torch.stack(list(self.sums.values())) / self.count, self.world).tolist()
        named = dict(zip(self.sums, means, strict=True))
        self.sums, self.count = {}, 0
        return named
