"""The network compiled cell by cell: graphs are small, and equal cells share their code."""

import copy
import os
import shutil
import sysconfig
import time
from importlib.util import find_spec
from pathlib import Path

import torch
import torch._dynamo
from torch import Tensor, nn
from torch._dynamo.utils import counters

from backbones.build import build_backbone
from backbones.compiling import compile_network
from benchmarks.gpu_check.stages import Context
from benchmarks.gpu_check.support.networks import draw_images, draw_labels, network_config
from benchmarks.measures import median_seconds, relative_error, synchronize
from utils.distributed.process_group import World, autocast, init_distributed, to_device
from utils.losses.header import header_loss, make_header

CLASSES = 1000


def run(context: Context) -> None:
    """Compares a compiled network with the eager one, and measures both."""
    if context.on_gpu and (missing := _missing_tools()):
        context.report.leave_out("compiled cells", f"no {missing}")
        return
    with init_distributed(context.device) as world, context.report.part("compiled cells, bf16"):
        _compare(context, world, 256 if context.on_gpu else 2, "bf16")


def _missing_tools() -> str:
    """Returns what is missing to compile for a GPU, or an empty text. Triton compiles launchers with a C compiler."""
    if not find_spec("triton"):
        return "triton"
    compiler = os.environ.get("CC", "gcc")
    if not shutil.which(compiler):
        return compiler
    header = Path(sysconfig.get_path("include"), "Python.h")
    return "" if header.is_file() else str(header)


def _compare(context: Context, world: World, batch: int, precision: str) -> None:
    """Compiles a copy of a network and writes its rows."""
    config = network_config(context)
    torch.manual_seed(0)
    eager = to_device(build_backbone(config), world).train()
    compiled = copy.deepcopy(eager)
    header = make_header(config, CLASSES, world)
    images, labels = draw_images(batch).to(world.device), draw_labels(batch, CLASSES).to(world.device)
    torch._dynamo.reset()
    counters.clear()
    # On a CPU the backend that compiles no code: it walks the lines here in seconds.
    compile_network(compiled, backend="inductor" if context.on_gpu else "aot_eager")

    def step(backbone: nn.Module) -> list[Tensor]:
        with autocast(world, precision):
            loss = header_loss(header, backbone(images), labels)
        return [loss.detach(), *torch.autograd.grad(loss, list(backbone.parameters()))]

    name = f"compiled cells, {precision}"
    cells = len(list(compiled.get_submodule("cells").children()))
    context.report.tell(name, f"{cells} cells")  # compiling may take longer than the limit
    start = time.monotonic()
    found = step(compiled)
    synchronize(world.device)
    graphs = counters["stats"]["unique_graphs"]
    breaks = sum(counters["graph_break"].values())
    context.report.measure(f"{name}: first step", time.monotonic() - start, "s", f"{graphs} graphs, {breaks} breaks")
    exact = step(eager)
    context.report.compare(f"{name}: loss and that of the eager network", _error(found[:1], exact[:1]), 2e-2)
    context.report.measure(f"{name}: gradient and that of the eager network", _error(found[1:], exact[1:]), "")
    repeats, calls = (5, 3) if context.on_gpu else (2, 1)
    for kind, backbone in (("eager", eager), ("compiled", compiled)):
        seconds = median_seconds(lambda backbone=backbone: step(backbone), world.device, repeats, calls)  # type: ignore[misc]
        context.report.measure(f"{name}: both passes, batch {batch}, {kind}", batch / seconds, "img/s")


def _error(found: list[Tensor], exact: list[Tensor]) -> float:
    """Returns the relative error of tensors, taken as one vector."""
    return relative_error(*(torch.cat([each.double().flatten() for each in tensors]) for tensors in (found, exact)))
