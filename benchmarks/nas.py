"""Measures one step of the architecture search relative to a plain training step of the supernet.

    python benchmarks/nas.py [--config FILE] [--rounds 3] [field=value …]        (default: NAS/config.py)

Second order takes four forward-backward passes for the alphas and one for the weights, first order one of each. For
comparison it measures second order as in the published code: a deep copy of the network for the unrolled step, `none`
computed and multiplied, and running statistics updated in every pass. All of them take turns in one run.
"""

import argparse
import copy
import sys
import time
from collections.abc import Callable
from pathlib import Path

if not __package__:  # run as a script: import modules from the project folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config import CommandParser, add_config_arguments, load_config
from config.base import Config
from NAS.architect import EPSILON, Architect
from NAS.search import DEFAULT_CONFIG
from NAS.supernet import MixedOp, Supernet
from utils.distributed.process_group import World, autocast, init_distributed, to_device
from utils.errors import UserError, run_cli

Batch = tuple[Tensor, Tensor]


class Benchmark:
    """Supernet, its optimizer, and two batches of noise."""

    def __init__(self, world: World, config: Config, classes: int = 100) -> None:
        """config: that of the search."""
        torch.manual_seed(0)
        sizes = (config.channel, config.n_layers, config.n_nodes, config.stem_multiplier)
        self.net = Supernet(*sizes, classes, config.embedding_size)
        to_device(self.net, world)
        for alpha in self.net.alphas():
            alpha.requires_grad_(False)
        self.weights = self.net.weights()
        self.optimizer = torch.optim.SGD(self.weights, 1e-4, config.momentum, weight_decay=config.weight_decay)
        shape = (config.batch_size, 3, 112, 112)
        self.train, self.val = (
            (
                torch.rand(shape, device=world.device).mul_(2).sub_(1).to(memory_format=torch.channels_last),
                torch.randint(0, classes, shape[:1], device=world.device),
            )
            for _ in range(2)
        )
        self.config, self.world = config, world

    def plain(self) -> None:
        """Runs one step of the weights."""
        with autocast(self.world, self.config.precision):
            loss = F.cross_entropy(self.net(self.train[0]), self.train[1])
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def search(self, second_order: bool) -> None:
        """Runs one step of the alphas and one of the weights."""
        momentum, weight_decay = self.config.momentum, self.config.weight_decay
        architect = Architect(self.net, momentum, weight_decay, self.world, second_order)
        with autocast(self.world, self.config.precision):
            architect.gradient(self.train, self.val, 1e-4, self.optimizer)
        self.plain()

    def search_as_published(self) -> None:
        """Runs the same as `search(True)`, with the extra work of the published code."""
        forward = MixedOp.forward
        MixedOp.forward = _forward_with_none  # type: ignore[method-assign, assignment]
        alphas = self.net.alphas()
        for alpha in alphas:
            alpha.requires_grad_(True)
        try:
            unrolled = copy.deepcopy(self.net)
            self._gradients(self.net, self.train, self.weights)
            direction = self._gradients(unrolled, self.val, [*unrolled.alphas(), *unrolled.weights()])  # type: ignore[operator]
            direction = direction[len(alphas) :]
            step = EPSILON / float(torch.cat([part.flatten() for part in direction]).norm())
            for factor in (step, -2 * step):
                with torch.no_grad():
                    for w, part in zip(self.weights, direction, strict=True):
                        w.add_(part, alpha=factor)
                self._gradients(self.net, self.train, alphas)
            with torch.no_grad():
                for w, part in zip(self.weights, direction, strict=True):
                    w.add_(part, alpha=step)
            self.plain()
        finally:
            MixedOp.forward = forward  # type: ignore[method-assign]
            for alpha in alphas:
                alpha.requires_grad_(False)
                alpha.grad = None

    def _gradients(self, net: nn.Module, batch: Batch, parameters: list) -> tuple[Tensor, ...]:
        """Returns the gradients of the loss with respect to the parameters."""
        with autocast(self.world, self.config.precision):
            loss = F.cross_entropy(net(batch[0]), batch[1])
        return torch.autograd.grad(loss, parameters)


def _forward_with_none(self: MixedOp, x: Tensor, weights: Tensor) -> Tensor:
    """Computes every operation, `none` as well, where MixedOp leaves it out."""
    mixed = [op(x) * weight for op, weight in zip(self._ops, weights, strict=True)]
    return sum(mixed[1:], start=mixed[0])


def main() -> None:
    """Runs the benchmark and prints its table."""
    parser = CommandParser(__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_config_arguments(parser)
    parser.add_argument("--rounds", type=int, default=3, help="measured steps of each (%(default)s)")
    args = parser.parse()
    if args.rounds < 1:
        raise UserError(f"--rounds {args.rounds}: should be at least 1")
    config = load_config(args.config or DEFAULT_CONFIG, args.overrides)
    with init_distributed() as world:
        benchmark = Benchmark(world, config)
        steps: dict[str, Callable[[], None]] = {
            "plain step": benchmark.plain,
            "first order": lambda: benchmark.search(False),
            "second order": lambda: benchmark.search(True),
            "second order as published": benchmark.search_as_published,
        }
        times: dict[str, list[float]] = {name: [] for name in steps}
        for turn in range(args.rounds + 1):
            for name, step in steps.items():
                start = time.perf_counter()
                step()
                if world.device.type == "cuda":
                    torch.cuda.synchronize()
                if turn:  # the first round is warm-up
                    times[name].append(time.perf_counter() - start)
    plain = min(times["plain step"])
    sizes = f"{config.channel} channels, {config.n_layers} cells, batch {config.batch_size}"
    print(f"{sizes}, {config.precision}, {world.device.type}")
    for name, seconds in times.items():
        print(f"{name:>28}{min(seconds):>9.3f} s{min(seconds) / plain:>7.2f} plain steps")


if __name__ == "__main__":
    run_cli(main)
