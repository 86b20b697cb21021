"""Counts parameters, MFLOPs as in the paper, and multiply-adds: python -m utils.flops [--config FILE] [field=value]

Without --config it counts every config in config/.
"""

import sys
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: import modules from the project folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from torch import Tensor, nn

from backbones.build import build_backbone
from config import load_config, parse_command, shipped_configs, warn_unused_fields
from utils.errors import run_cli


@dataclass
class Cost:
    """Size of a network, and operations of one forward pass on one image."""

    parameters: int = 0
    # As in the paper: 2 per multiply-add, 2 per batch-norm input, 1 per activation input, k² per pooling output.
    published_flops: int = 0
    multiply_adds: int = 0  # of convolutions and fully connected layers


def count_operations(backbone: nn.Module, shape: tuple[int, ...] = (3, 112, 112)) -> Cost:
    """Returns the cost of a network for one input of shape (C, H, W), counted in hooks during one forward pass."""
    cost = Cost(parameters=sum(p.numel() for p in backbone.parameters()))

    def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(module, nn.Conv2d | nn.Linear):
            multiply_adds = output.numel() * (module.weight.numel() // len(module.weight))  # each sums over one filter
            cost.multiply_adds += multiply_adds
            cost.published_flops += 2 * multiply_adds
        elif isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            cost.published_flops += 2 * inputs[0].numel()
        elif isinstance(module, nn.PReLU | nn.ReLU):
            cost.published_flops += inputs[0].numel()
        elif isinstance(module, nn.MaxPool2d | nn.AvgPool2d):
            cost.published_flops += output.numel() * int(module.kernel_size) ** 2  # type: ignore[arg-type]

    handles: list[Any] = [module.register_forward_hook(add) for module in backbone.modules()]
    was_training = backbone.training
    with torch.inference_mode():
        # A pooling of the search has no parameters, but statistics; an identity has neither.
        device = next((tensor.device for tensor in chain(backbone.parameters(), backbone.buffers())), None)
        backbone.eval()(torch.zeros(1, *shape, device=device))
    backbone.train(was_training)
    for handle in handles:
        handle.remove()
    return cost


def main() -> None:
    """Runs the command."""
    if len(sys.argv) > 1:
        config = parse_command("Count a backbone's parameters and operations.")
        warn_unused_fields(config, "flops")
        configs = {Path(config.output).name: config}
    else:
        configs = {path.stem.removeprefix("config_"): load_config(path) for path in shipped_configs()}
    print(f"{'':16}{'parameters':>14}{'MFLOPs (published)':>20}{'M multiply-adds':>18}")
    for name, config in configs.items():
        cost = count_operations(build_backbone(config))
        print(f"{name:16}{cost.parameters:>14,}{cost.published_flops / 1e6:>20,.2f}{cost.multiply_adds / 1e6:>18,.1f}")


if __name__ == "__main__":
    run_cli(main)
