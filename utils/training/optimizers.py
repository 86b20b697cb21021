"""The optimizers of the table OPTIMIZERS in utils/registry.py, and what every optimizer needs to be resumed."""

import torch
from torch import nn

from config.base import Config
from utils.registry import OPTIMIZERS, load_entry
from utils.training.task import Task

# Both fill their state, as before the first step: a first step that overflows in fp16 leaves unfilled state
# uninitialised (SGD of torch 2.13). Both are fused: they then skip a step on the device, and the host does not wait.


def sgd(parameters: list[nn.Parameter], config: Config) -> torch.optim.Optimizer:
    """Returns SGD with momentum, as published."""
    optimizer = torch.optim.SGD(
        parameters, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay, fused=True
    )
    for parameter in parameters:
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def adamw(parameters: list[nn.Parameter], config: Config) -> torch.optim.Optimizer:
    """Returns AdamW."""
    optimizer = torch.optim.AdamW(parameters, lr=config.lr, weight_decay=config.weight_decay, fused=True)
    for parameter in parameters:
        optimizer.state[parameter] = {
            "step": torch.zeros((), device=parameter.device),  # (), float32
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
    return optimizer


def make_optimizer(task: Task, config: Config) -> torch.optim.Optimizer:
    """Returns config.optimizer over the trainable parameters of backbone and header."""
    parameters = [p for module in (task.backbone, task.header) for p in module.parameters() if p.requires_grad]
    return load_entry(OPTIMIZERS[config.optimizer])(parameters, config)


def can_skip_on_device(optimizer: torch.optim.Optimizer) -> bool:
    """Whether its step does nothing where its attribute `found_inf` is 1, as that of torch's fused optimizers."""
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))  # the attribute that GradScaler reads


def fill_optimizer_state(optimizer: torch.optim.Optimizer) -> None:
    """Creates the state of parameters that have none, which most optimizers do in their first step, to be loaded into.

    It takes a step with gradients of 0 and a learning rate of 0, so that the weights keep their values.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if all(optimizer.state.get(parameter) for parameter in parameters):
        return
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
