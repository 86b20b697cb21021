"""Optimizers by the name in config.optimizer. A new one is a function here and a line in OPTIMIZERS."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from easydict import EasyDict
from torch import nn

from utils.training.task import Task

# Each function returns an optimizer of these parameters with its state filled, as before the first step: the state is
# restored in place, and a first step that overflows in fp16 leaves unfilled state uninitialised (SGD of torch 2.13).
# Each is fused: it then reads found_inf on the device, so that the host does not wait for it.


def _sgd(parameters: list[nn.Parameter], config: EasyDict) -> torch.optim.Optimizer:
    optimizer = torch.optim.SGD(
        parameters, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay, fused=True
    )
    for parameter in parameters:
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def _adamw(parameters: list[nn.Parameter], config: EasyDict) -> torch.optim.Optimizer:
    optimizer = torch.optim.AdamW(parameters, lr=config.lr, weight_decay=config.weight_decay, fused=True)
    for parameter in parameters:
        optimizer.state[parameter] = {
            "step": torch.zeros((), device=parameter.device),  # (), float32
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
    return optimizer


class OptimizerKind(NamedTuple):
    """How to make an optimizer, and how much memory its state needs."""

    make: Callable[[list[nn.Parameter], EasyDict], torch.optim.Optimizer]
    buffers: int  # state tensors of the size of a parameter


OPTIMIZERS = {"sgd": OptimizerKind(_sgd, buffers=1), "adamw": OptimizerKind(_adamw, buffers=2)}


def make_optimizer(task: Task, config: EasyDict) -> torch.optim.Optimizer:
    """Returns config.optimizer over the trainable parameters of backbone and header."""
    parameters = [p for module in (task.backbone, task.header) for p in module.parameters() if p.requires_grad]
    return OPTIMIZERS[config.optimizer].make(parameters, config)
