"""Memory of the device and of the machine: the network's and the head's for a batch, and what lies beside them."""

from collections.abc import Callable, Iterator

import torch

from utils.distillation.teacher import NetworkTeacher, is_onnx
from utils.distributed.process_group import PRECISIONS, to_device
from utils.doctor.plan import Run
from utils.doctor.step_memory import available_memory, head_bytes, largest_output, saved_activation_bytes
from utils.doctor.table import CLOSE, WARN, Check, format_bytes, unknown, weighed
from utils.errors import UserError

PROCESS = 600 << 20  # bytes of a training process that does nothing yet: 250 MiB on a CPU, more with CUDA's libraries
HEAP = 1.5  # memory that a CPU's heap grows by for a byte of a step's in use: 1.26 to 1.54, as measured


def memory(plan: Run) -> Iterator[Check]:
    """What training takes of the device, and of this machine's memory."""
    if not plan.num_classes:
        yield unknown("memory")
        return
    try:
        fixed, by_image = backbone_bytes(plan)
    except RuntimeError as error:  # of CUDA: out of memory, or not built for this GPU
        reason = str(error).splitlines()[0]
        raise UserError(f"a step of three images fails on {plan.world.device}: {reason}; see to the device") from None

    gpu = plan.world.device.type == "cuda"

    def of_device(batch: int) -> float:
        return fixed + by_image * batch + head(plan, batch)

    def of_machine(batch: int) -> float:
        grown = HEAP * (by_image * batch + head(plan, batch))
        return rest_bytes(plan) + (0 if gpu else plan.local * (fixed + grown))

    if gpu:
        free = min(torch.cuda.mem_get_info(i)[0] for i in range(min(plan.local, torch.cuda.device_count())))
        yield _room(plan, of_device, free, f"each {torch.cuda.get_device_name()}")
    available = available_memory()
    if available is None:
        needed = format_bytes(of_machine(plan.config.batch_size))
        found = f"{needed} of memory needed; this system does not say what is free"
        yield Check("memory", WARN, found, "see for yourself that there is so much")
    else:
        yield _room(plan, of_machine, available, "this machine")


def _room(plan: Run, need: Callable[[int], float], free: int, where: str) -> Check:
    """need: bytes for a batch."""
    batch = plan.config.batch_size
    fitting = next((fewer for fewer in range(batch - 1, 1, -1) if need(fewer) <= CLOSE * free), 0)
    fix = f"batch_size={fitting} fits" if fitting else "free some; fewer processes, workers or classes take less"
    if not fitting and plan.config.head == "whole" and plan.processes > 1:
        fix += ", and head=sharded splits the head"
    whole, for_one = need(batch), need(batch) - need(batch - 1)
    part = f", {format_bytes(for_one)} of it for each image of a batch" if for_one else ""
    return weighed(
        "memory", whole, free, f"{format_bytes(whole)} needed of {format_bytes(free)} free on {where}{part}", fix
    )


def rest_bytes(plan: Run) -> float:
    """Of all processes of this machine, beside their steps: the sets, and two copies of weights and momentum that wait
    to be written."""
    sets = plan.set_bytes * plan.local // plan.processes if plan.config.eval_step else 0
    return plan.local * (PROCESS + plan.config.workers * plan.slot_bytes) + 4 * plan.header_bytes + sets


def head(plan: Run, batch: int) -> float:
    """Of a process's head, at the peak of a step with a batch on each."""
    config = plan.config
    return head_bytes(config.head, config.embedding_size, plan.num_classes, plan.processes, batch, config.sample_rate)


def backbone_bytes(plan: Run) -> tuple[float, float]:
    """Of a process's backbone and its teacher at the peak of a step: whatever the batch, and for each image of it.

    Weights, gradients and momentum, and what the backbone keeps for the backward pass, measured.
    """
    config, world = plan.config, plan.world
    backbone = to_device(plan.backbone, world).train()
    # Half precision can take a CPU minutes: there it is reckoned from float32.
    kind = config.precision if world.device.type == "cuda" else "fp32"
    share = torch.finfo(PRECISIONS[config.precision]).bits / torch.finfo(PRECISIONS[kind]).bits
    two, three = (share * saved_activation_bytes(backbone, n, world, kind) for n in (2, 3))
    fixed = 3 * sum(parameter.nbytes for parameter in backbone.parameters()) + max(0, 3 * two - 2 * three)
    by_image = three - two
    if isinstance(plan.teacher, NetworkTeacher):
        network = plan.teacher.network
        fixed += sum(parameter.nbytes for parameter in network.parameters())
        by_image += 3 * largest_output(network, world)  # what goes around a block, into a layer and out of it
    elif plan.teacher_files and is_onnx(config):
        fixed += plan.teacher_files[0].stat().st_size
    return fixed, by_image
