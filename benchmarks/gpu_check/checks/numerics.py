"""Losses and gradients of each precision and header against float64 on the CPU.

The gradient of a network has jumps: PReLU switches at a value of 0, max pooling where two are equal. Batch norms over a
batch multiply rounding errors further. So float32 itself is 1e-3 to 1e-2 from float64 in the gradient of a new
PocketNetS-128. The tight limits are for a network of the same layers without any of that: the slopes of PReLU are 1,
pooling averages, batch norms use fixed statistics. There float32 is within 1e-5, and the 10 bits of TF32 and fp16 or
the 7 of bf16 show. The loose limits are for the network as it trains; the loss is well conditioned in both.
"""

import copy
import math
from dataclasses import dataclass, replace
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones.build import build_backbone
from benchmarks.gpu_check.stages import Context
from benchmarks.gpu_check.support.networks import draw_images, draw_labels, fix_statistics, network_config
from benchmarks.measures import relative_error
from config.base import Config
from utils.distributed.precision import PRECISIONS, tf32_of
from utils.distributed.process_group import World, autocast, init_distributed, to_device
from utils.losses.header import header_loss, make_header
from utils.losses.partial_fc import ShardedHeader

# Largest relative errors of the loss, and of the gradients. On a CPU, where tf32 was tried by rounding the factors of
# convolutions, a smooth PocketNetS-128 has 2e-8 and 2e-6 in fp32; 1e-4 and 3e-2 in tf32 and fp16; 2e-3 and 4e-2 in
# bf16. A wrong kernel makes errors of the order of 1. None: the gradient of the network in training has no limit.
LIMITS: dict[str, dict[str, tuple[float, float | None]]] = {
    "smooth": {"fp32": (1e-5, 1e-4), "tf32": (1e-3, 1e-1), "bf16": (1e-2, 2e-1), "fp16": (1e-3, 1e-1)},
    "training": {"fp32": (1e-4, 1e-1), "tf32": (1e-2, None), "bf16": (5e-2, None), "fp16": (1e-2, None)},
}
HEADERS = {"replicated": ("replicated", 1.0), "sharded": ("sharded", 1.0), "sampled": ("sharded", 0.1)}
CLASSES = 1000


@dataclass(frozen=True)
class Case:
    """A batch with its network and the header's kernel, on the CPU in float32."""

    config: Config
    backbone: nn.Module
    kernel: Tensor  # (D, CLASSES)
    images: Tensor  # (B, 3, 112, 112)
    labels: Tensor  # (B,)


@dataclass(frozen=True)
class Gradients:
    """A loss and its gradients in float64 on the CPU, that of the backbone as one vector."""

    loss: Tensor
    backbone: Tensor  # (parameters,)
    kernel: Tensor  # (D, CLASSES)


def run(context: Context) -> None:
    """Compares every precision and header, for both networks."""
    with init_distributed(context.device) as world:
        config, batch = network_config(context), 8 if context.on_gpu else 4
        for network in LIMITS:
            case = make_case(config, batch, smooth=network == "smooth")
            headers = {header: _make_header(case, header, world) for header in HEADERS}
            whole, sampled = reference(case), reference(case, sampled_columns(headers["sampled"], case.labels))
            on_device = replace(case, backbone=to_device(copy.deepcopy(case.backbone), world))
            for precision, (header, module) in product(PRECISIONS, headers.items()):
                check = f"{network} network, {precision}, {header}"
                with context.report.part(check):
                    found = gradients(on_device, module, world, precision)
                    exact = sampled if header == "sampled" else whole
                    _write_errors(context, check, found, exact, *LIMITS[network][precision])
        if context.on_gpu:
            _check_tf32(context, world)


def _write_errors(
    context: Context, check: str, found: Gradients, exact: Gradients, loss_limit: float, limit: float | None
) -> None:
    """Writes the larger error of the gradients of backbone and header; the error of the loss has to keep its limit."""
    loss = relative_error(found.loss, exact.loss)
    errors = [relative_error(getattr(found, part), getattr(exact, part)) for part in ("backbone", "kernel")]
    note = f"gradient; loss {loss:.1e} ≤ {loss_limit:.0e}"
    if limit is None:
        context.report.expect(
            check, loss <= loss_limit, f"gradient {errors[0]:.1e}; loss {loss:.1e} ≤ {loss_limit:.0e}"
        )
    else:
        worst = max(errors) if all(map(math.isfinite, errors)) else math.nan
        context.report.compare(check, worst, limit, note, also=loss <= loss_limit)


def make_case(config: Config, batch: int, smooth: bool) -> Case:
    """Returns a new network and a batch for it.

    smooth: pooling averages, all slopes are 1, and batch norms are in evaluation mode, with one variance for all
    channels, so that the signal keeps its size from layer to layer.
    """
    torch.manual_seed(0)
    if smooth:
        genotype = config.genotypes[config.genotype].replace("max_pool", "avg_pool")
        config = replace(config, genotypes=config.genotypes | {config.genotype: genotype})
    backbone = build_backbone(config).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    images = draw_images(batch)
    if smooth:
        for module in backbone.modules():
            if isinstance(module, nn.PReLU):
                nn.init.ones_(module.weight)
        fix_statistics(backbone, images)
    kernel = torch.randn(config.embedding_size, CLASSES) * 0.01
    return Case(config, backbone, kernel, images, draw_labels(batch, CLASSES))


def _make_header(case: Case, header: str, world: World) -> nn.Module:
    """Returns a header of HEADERS on the device, with the kernel of the case."""
    kind, sample_rate = HEADERS[header]
    module = make_header(replace(case.config, header=kind, sample_rate=sample_rate), CLASSES, world)
    with torch.no_grad():
        module.get_parameter("kernel").copy_(case.kernel)
    return module


def sampled_columns(header: nn.Module, labels: Tensor) -> Tensor:
    """Returns the columns, (K,) ascending on the CPU, that a sampled header draws at its first step."""
    assert isinstance(header, ShardedHeader)
    header.set_step(0)
    target = labels.to(header.kernel.device)
    return header.sample(target, torch.ones_like(target, dtype=torch.bool)).cpu()


def reference(case: Case, columns: Tensor | None = None) -> Gradients:
    """Returns loss and gradients in float64 on the CPU. columns: of the header that take part, (K,); None: all."""
    backbone = copy.deepcopy(case.backbone).double()
    kernel = case.kernel.double().requires_grad_()
    embeddings = backbone(case.images.double())
    if columns is None:
        loss = arcface_loss(embeddings, kernel, case.labels, case.config)
    else:
        loss = arcface_loss(embeddings, kernel[:, columns], torch.searchsorted(columns, case.labels), case.config)
    *found, of_kernel = torch.autograd.grad(loss, [*backbone.parameters(), kernel])
    return Gradients(loss.detach(), torch.cat([each.flatten() for each in found]), of_kernel)


def arcface_loss(embeddings: Tensor, kernel: Tensor, labels: Tensor, config: Config) -> Tensor:
    """Returns the cross-entropy of ArcFace, by the angles themselves: (B, D), (D, C), (B,) -> ()."""
    cosine = F.normalize(embeddings, dim=1) @ F.normalize(kernel, dim=0)
    target = cosine.gather(1, labels[:, None])
    angle = target.acos()
    beyond = target - config.m * math.sin(config.m)
    shifted = torch.where(angle < math.pi - config.m, torch.cos(angle + config.m), beyond)
    return F.cross_entropy(cosine.scatter(1, labels[:, None], shifted) * config.s, labels)


def gradients(case: Case, header: nn.Module, world: World, precision: str) -> Gradients:
    """Returns loss and gradients on the device, in a precision. In fp16 the loss is scaled as far as it can be.

    case: with the backbone on the device.
    """
    images, labels = case.images.to(world.device), case.labels.to(world.device)
    scale = 2.0**16 if precision == "fp16" else 1.0
    while True:
        if isinstance(header, ShardedHeader):
            header.set_step(0)
        with tf32_of(precision):
            with autocast(world, precision):
                loss = header_loss(header, case.backbone(images), labels)
            parameters = [*case.backbone.parameters(), header.get_parameter("kernel")]
            *found, of_kernel = torch.autograd.grad(loss * scale, parameters)
        flat = torch.cat([each.flatten() for each in found])
        if scale <= 1 or (bool(flat.isfinite().all()) and bool(of_kernel.isfinite().all())):
            parts = (loss.detach().cpu().double(), flat.cpu().double() / scale, of_kernel.cpu().double() / scale)
            return Gradients(*parts)
        scale /= 2


def _check_tf32(context: Context, world: World) -> None:
    """Checks that a convolution uses TF32 where tf32 is asked for, and there alone."""
    if torch.cuda.get_device_capability(world.device) < (8, 0):
        context.report.leave_out("TF32 where it is asked for", "this GPU has no TF32")
        return
    generator = torch.Generator().manual_seed(0)
    images, weight = (torch.randn(size, generator=generator) for size in ((16, 256, 14, 14), (256, 256, 3, 3)))
    exact = F.conv2d(images.double(), weight.double())
    errors = {}
    for precision in ("fp32", "tf32"):
        with autocast(world, precision):
            found = F.conv2d(images.to(world.device), weight.to(world.device))
        errors[precision] = relative_error(found.cpu().double(), exact)
    context.report.compare("a convolution in fp32", errors["fp32"], 5e-5)
    context.report.compare("a convolution in tf32", errors["tf32"], 2e-3)
    context.report.expect("TF32 where it is asked for", errors["tf32"] > 1e-4)  # its products are rounded to 2^-11
