"""One optimizer step on backbone and header: forward pass, backward pass and weight update."""

import numpy as np
import torch
from torch import Tensor, nn

from config.base import Config
from utils.distributed.data_parallel import average_gradients
from utils.distributed.precision import tf32_of
from utils.distributed.process_group import World, autocast
from utils.training.learning_rate import learning_rate
from utils.training.nonfinite import NonFiniteGuard
from utils.training.optimizers import can_skip_on_device, make_optimizer
from utils.training.task import Batch, Task


class OptimizerStep:
    """Updates the trainable parameters of backbone and header; each call is one step."""

    def __init__(self, task: Task, keys: np.ndarray, config: Config, world: World) -> None:
        """keys: record keys of the training images, by dataset index."""
        self.task = task
        self.config = config
        self.world = world
        self.optimizer = make_optimizer(task, config)
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=config.precision == "fp16")
        networks = nn.ModuleList([task.backbone, task.header])
        self.nonfinite = NonFiniteGuard(networks, self.optimizer, keys, config, world)
        self._one = torch.ones((), device=world.device)  # scaled to read the loss scale on the device

    def set_learning_rate(self, epoch: int) -> float:
        """Sets and returns the learning rate of an epoch."""
        lr = learning_rate(self.config, self.world.size, epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        return lr

    def __call__(self, batch: Batch, step: int) -> tuple[dict[str, Tensor], Tensor]:
        """Runs global step `step`; skips its update if it is non-finite on any rank. Collective: call on all ranks.

        Returns the task's named losses and whether the step is non-finite, a () bool tensor on the device. The host
        does not wait for the device.
        """
        self.nonfinite.save_buffers()
        with tf32_of(self.config.precision):
            with autocast(self.world, self.config.precision):
                losses = self.task(batch)
            values = torch.stack([loss.detach().float() for loss in losses.values()])
            # The scaler skips a step only for a non-finite gradient, so a non-finite loss has to make the gradient NaN.
            weight = torch.where(torch.isfinite(values).all(), 1.0, torch.nan)
            self.scaler.scale(losses["Loss"] * weight).backward()
        average_gradients(self.task.backbone)
        average_gradients(self.task.header)
        self.scaler.unscale_(self.optimizer)
        grad_norm = _clip_gradient(self.task.backbone, self.config.clip_norm) + _gradient_norm(self.task.header)
        loss_scale = self.scaler.scale(self._one)
        nonfinite = self.nonfinite.is_nonfinite(step, values, grad_norm, loss_scale, batch.indices)
        self.task.undo_step(nonfinite)
        self._update_weights(nonfinite)
        self.optimizer.zero_grad(set_to_none=True)
        return losses, nonfinite

    def _update_weights(self, nonfinite: Tensor) -> None:
        """Takes the optimizer's step unless the step is non-finite."""
        if self.scaler.is_enabled():
            self.scaler.step(self.optimizer)
            self.scaler.update()
        elif can_skip_on_device(self.optimizer):
            self.optimizer.found_inf = nonfinite.float()  # type: ignore[attr-defined]
            self.optimizer.step()
        elif not nonfinite.item():
            self.optimizer.step()


def _clip_gradient(backbone: nn.Module, max_norm: float) -> Tensor:
    """Clips the gradient to max_norm, unless that is 0. Returns the norm before clipping, a () tensor."""
    if max_norm:
        return nn.utils.clip_grad_norm_(backbone.parameters(), max_norm)
    return _gradient_norm(backbone)


def _gradient_norm(module: nn.Module) -> Tensor:
    """Returns the total gradient norm over the parameters that have a gradient, a () tensor."""
    return nn.utils.get_total_norm([parameter.grad for parameter in module.parameters() if parameter.grad is not None])
