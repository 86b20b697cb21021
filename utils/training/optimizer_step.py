"""A step of the networks' weights: forward, backward, and the optimizer's."""

import numpy as np
import torch
from easydict import EasyDict
from torch import Tensor, nn

from utils.distributed.process_group import World, autocast
from utils.training.nonfinite import NonFiniteGuard
from utils.training.task import Batch, Task


class OptimizerStep:
    """Moves the parameters of both networks that learn; calling it is a step."""

    def __init__(self, task: Task, keys: np.ndarray, config: EasyDict, world: World) -> None:
        """keys: of the training images, by index."""
        self.task = task
        self.config = config
        self.world = world
        self.optimizer = make_optimizer(task, config)
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=config.precision == "fp16")
        self.nonfinite = NonFiniteGuard(task.backbone, self.optimizer, keys, config, world)
        self._one = torch.ones((), device=world.device)

    def set_learning_rate(self, epoch: int) -> float:
        """The epoch's: config.lr is for 512 images a step and scales with the images there really are."""
        lr = self.config.lr * self.config.batch_size * self.world.size / 512 * self.config.lr_func(epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        return lr

    def __call__(self, batch: Batch, step: int) -> tuple[dict[str, Tensor], Tensor]:
        """Does the global step of that number, or leaves it out where it is bad; the host never waits for the device.

        Returns the task's named losses, and whether the step is bad: (), bool.
        """
        self.nonfinite.save_buffers()
        with autocast(self.world, self.config.precision):
            named = self.task(batch)
        losses = torch.stack([value.detach().float() for value in named.values()])
        # A loss that is not finite makes its gradient so, by which alone the scaler leaves a step out.
        weight = torch.where(torch.isfinite(losses).all(), 1.0, torch.nan)
        self.scaler.scale(named["Loss"] * weight).backward()
        self.scaler.unscale_(self.optimizer)
        norm = _clip(self.task.backbone, self.config.clip_norm) + _norm(self.task.header)
        bad = self.nonfinite.is_nonfinite(step, losses, norm, self.scaler.scale(self._one), batch.indices)
        if not self.scaler.is_enabled():
            self.optimizer.found_inf = bad.float()  # type: ignore[attr-defined]  # then the fused step does nothing
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return named, bad


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


def _clip(backbone: nn.Module, largest: float) -> Tensor:
    """Scales the gradient down to the largest norm, if that is not 0; returns the norm it had: ()."""
    if largest:
        return nn.utils.clip_grad_norm_(backbone.parameters(), largest)
    return _norm(backbone)


def _norm(module: nn.Module) -> Tensor:
    """Of its gradient: ()."""
    return nn.utils.get_total_norm([parameter.grad for parameter in module.parameters() if parameter.grad is not None])
