"""Checks of memory: estimates what a run needs of the device and of this machine, for its batch size."""

from collections.abc import Callable, Iterator

import torch

from utils.distillation.teacher import NetworkTeacher, is_onnx
from utils.distributed.process_group import PRECISIONS, to_device
from utils.doctor.plan import RunPlan
from utils.doctor.step_memory import available_memory, header_step_bytes, largest_output, saved_activation_bytes
from utils.doctor.table import CLOSE, WARN, Check, compare_with_free, format_bytes, not_checked
from utils.errors import UserError
from utils.training.optimizers import OPTIMIZERS

PROCESS = 600 << 20  # bytes of an idle training process: 250 MiB on a CPU, more with CUDA's libraries
HEAP = 1.5  # growth of a CPU's heap per byte in use in a step: 1.26 to 1.54, as measured


def check_memory(plan: RunPlan) -> Iterator[Check]:
    """Compares the memory that training needs with what is free on the device and on this machine."""
    if not plan.num_classes:
        yield not_checked("memory")
        return
    try:
        fixed, per_image = backbone_bytes(plan)
    except RuntimeError as error:  # CUDA is out of memory or not built for this GPU
        reason = str(error).splitlines()[0]
        raise UserError(
            f"a step of three images fails on {plan.world.device}: {reason}", fix="check the device"
        ) from None

    gpu = plan.world.device.type == "cuda"

    def device_bytes(batch: int) -> float:
        return fixed + per_image * batch + plan_header_bytes(plan, batch)

    def machine_bytes(batch: int) -> float:
        heap = HEAP * (per_image * batch + plan_header_bytes(plan, batch))
        return rest_bytes(plan) + (0 if gpu else plan.local_processes * (fixed + heap))

    if gpu:
        free = min(torch.cuda.mem_get_info(i)[0] for i in range(min(plan.local_processes, torch.cuda.device_count())))
        yield _check_free(plan, device_bytes, free, f"each {torch.cuda.get_device_name()}")
    available = available_memory()
    if available is None:
        needed = format_bytes(machine_bytes(plan.config.batch_size))
        found = f"{needed} of memory needed; this system does not report what is free"
        yield Check("memory", WARN, found, "check that this much memory is free")
    else:
        yield _check_free(plan, machine_bytes, available, "this machine")


def _check_free(plan: RunPlan, need: Callable[[int], float], free: int, where: str) -> Check:
    """Compares the need at the config's batch size with the free bytes; the fix names a batch size that fits.

    need: bytes needed for a batch size. where: name of the device or machine.
    """
    batch = plan.config.batch_size
    fitting = next((smaller for smaller in range(batch - 1, 1, -1) if need(smaller) <= CLOSE * free), 0)
    fix = f"batch_size={fitting} fits" if fitting else "free some; fewer processes, workers or classes need less"
    if not fitting and plan.config.head == "whole" and plan.processes > 1:
        fix += ", and head=sharded splits the header"
    total, per_image = need(batch), need(batch) - need(batch - 1)
    detail = f", {format_bytes(per_image)} of it per image of a batch" if per_image else ""
    found = f"{format_bytes(total)} needed of {format_bytes(free)} free on {where}{detail}"
    return compare_with_free("memory", total, free, found, fix)


def rest_bytes(plan: RunPlan) -> float:
    """Returns the bytes that all processes on this machine need apart from their steps.

    These are the processes themselves, the images of loader workers, the evaluation sets, and two copies of weights and
    optimizer state that wait to be written.
    """
    sets = plan.set_bytes * plan.local_processes // plan.processes if plan.config.eval_step else 0
    copies = 2 * (1 + OPTIMIZERS[plan.config.optimizer].buffers) * plan.header_bytes
    return plan.local_processes * (PROCESS + plan.config.workers * plan.slot_bytes) + copies + sets


def plan_header_bytes(plan: RunPlan, batch: int) -> float:
    """Returns the bytes of a process's header at the peak of a step with so many images per process."""
    config = plan.config
    with_sgd = header_step_bytes(
        config.head, config.embedding_size, plan.num_classes, plan.processes, batch, config.sample_rate
    )
    shards = plan.processes if config.head == "sharded" else 1
    return with_sgd + (OPTIMIZERS[config.optimizer].buffers - 1) * plan.header_bytes / shards


def backbone_bytes(plan: RunPlan) -> tuple[float, float]:
    """Returns the bytes of a process's backbone and teacher at the peak of a step: fixed, and per image of a batch.

    They cover weights, gradients, optimizer state, and the activations saved for the backward pass, which are measured.
    """
    config, world = plan.config, plan.world
    backbone = to_device(plan.backbone, world).train()
    # Half precision can take a CPU minutes, so there the need is scaled down from float32.
    precision = config.precision if world.device.type == "cuda" else "fp32"
    scale = torch.finfo(PRECISIONS[config.precision]).bits / torch.finfo(PRECISIONS[precision]).bits
    two, three = (scale * saved_activation_bytes(backbone, n, world, precision) for n in (2, 3))
    copies = 2 + OPTIMIZERS[config.optimizer].buffers  # weights, gradients and optimizer state
    fixed = copies * sum(parameter.nbytes for parameter in backbone.parameters()) + max(0, 3 * two - 2 * three)
    per_image = three - two
    if isinstance(plan.teacher, NetworkTeacher):
        network = plan.teacher.network
        fixed += sum(parameter.nbytes for parameter in network.parameters())
        per_image += 3 * largest_output(network, world)  # a block's shortcut, a layer's input and its output
    elif plan.teacher_files and is_onnx(config):
        fixed += plan.teacher_files[0].stat().st_size
    return fixed, per_image
