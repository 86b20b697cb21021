"""The architecture search in both orders, and the second-order part of its gradient against float64 on the CPU."""

import copy
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

import NAS.search
from benchmarks.gpu_check.stages import Context
from benchmarks.gpu_check.support.commands import run_here
from benchmarks.gpu_check.support.networks import SMALL_SEARCH, draw_images, draw_labels, run_fields
from NAS.architect import Architect
from NAS.supernet import Supernet
from utils.distributed.precision import tf32_of
from utils.distributed.process_group import World, autocast, init_distributed, to_device

CLASSES = 20
XI, MOMENTUM, WEIGHT_DECAY = 0.01, 0.9, 3e-4
# On a CPU float32 has 6e-4 to 2e-3, with the factors of all convolutions rounded to TF32 0.1.
LIMIT = 1e-2


def run(context: Context) -> None:
    """Searches a few steps in each order, then compares the gradient."""
    fields = ["batch_size=64"] if context.on_gpu else [*SMALL_SEARCH, "batch_size=4"]
    for name, second_order, precision in (("first", 0, "bf16"), ("second", 1, "fp32")):
        check = f"search, {name} order, {precision}"
        with context.report.part(check):
            output = run_fields(context, f"search_{name}")
            steps = ["max_steps=4", "num_epoch=1", "log_step=1", "search_eval=16"]
            run_here(
                NAS.search.main, *fields, *output, *steps, f"second_order={second_order}", f"precision={precision}"
            )
            folder = context.folder / "runs" / f"search_{name}"
            found = (folder / "4supernet.pth").is_file() and (folder / "genotypes.jsonl").is_file()
            context.report.expect(check, found)
    with context.report.part("gradient of the search"), init_distributed(context.device) as world:
        _compare_gradients(context, world)


class _RecordingArchitect(Architect):
    """Keeps the second-order product of its last gradient."""

    product: Tensor

    def _hessian_product(self, *args: Any) -> list[Tensor]:
        found = super()._hessian_product(*args)
        self.product = torch.cat([part.detach().flatten() for part in found]).cpu().double()
        return found


def _compare_gradients(context: Context, world: World) -> None:
    """Writes 1 - cosine between the second-order product on the device and in float64 on the CPU."""
    torch.manual_seed(0)
    sizes = (8, 4, 4, 3) if context.on_gpu else (4, 4, 2, 3)
    net = Supernet(*sizes, CLASSES, 32)
    cpu = World(0, 1, torch.device("cpu"))
    exact = second_order_product(copy.deepcopy(net).double(), cpu, "fp32")
    check = "1 - cosine of the second-order product"
    for precision in ("fp32", "tf32", "bf16"):
        with context.report.part(f"{check}, {precision}"):
            error = 1 - float(F.cosine_similarity(product_on_device(net, world, precision), exact, dim=0))
            if precision == "fp32":
                context.report.compare(f"{check}, fp32", error, LIMIT)
            else:
                context.report.measure(f"{check}, {precision}", error, "", "its differences are in float32")
    # As it would be without the block of NAS/architect.py that computes the differences in float32.
    for precision in ("tf32", "bf16"):
        with context.report.part(f"{check}, all in {precision}"), patch("NAS.architect.autocast", _no_autocast):
            error = 1 - float(F.cosine_similarity(product_on_device(net, world, precision), exact, dim=0))
            context.report.measure(f"{check}, all in {precision}", error, "", "for comparison")


def product_on_device(net: Supernet, world: World, precision: str) -> Tensor:
    """Returns `second_order_product` of a copy of the net on the device."""
    return second_order_product(to_device(copy.deepcopy(net), world), world, precision)  # type: ignore[arg-type]


def _no_autocast(world: World, precision: str) -> AbstractContextManager[None]:
    """Leaves the precision of the surrounding block."""
    return nullcontext()


def second_order_product(net: Supernet, world: World, precision: str) -> Tensor:
    """Returns the second-order product of the alphas' gradient as one float64 vector on the CPU.

    net: a supernet on the device of `world`, float32 or float64. precision: of the search.
    """
    for alpha in net.alphas():
        alpha.requires_grad_(False)
    dtype = net.weights()[0].dtype
    batch = 8 if world.device.type == "cuda" else 4
    batches = [(draw_images(8, seed)[:batch], draw_labels(8, CLASSES, seed)[:batch]) for seed in (1, 2)]
    train, val = ((images.to(world.device, dtype), labels.to(world.device)) for images, labels in batches)
    optimizer = torch.optim.SGD(net.weights(), XI, MOMENTUM, weight_decay=WEIGHT_DECAY)
    architect = _RecordingArchitect(net.train(), MOMENTUM, WEIGHT_DECAY, world)
    with tf32_of(precision), autocast(world, precision):
        architect.gradient(train, val, XI, optimizer)
    return architect.product
