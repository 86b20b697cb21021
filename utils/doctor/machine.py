"""Checks of the config and of the machine: schedule, device, half precision, folders and disk space."""

import itertools
import os
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import torch

from backbones.names import resolve_network_name
from config import ensure_output_folder, warn_unused_fields
from config.base import Config
from utils.doctor.plan import RunPlan
from utils.doctor.table import FAIL, PASS, WARN, Check, collect_checks, format_bytes, format_processes
from utils.errors import shorten
from utils.losses.partial_fc import ShardedHeader
from utils.registry import BACKBONES
from utils.training.learning_rate import learning_rate
from utils.training.optimizers import fill_optimizer_state, make_optimizer
from utils.training.task import Task

TENSOR_HEADER = 300  # bytes of a file that describe one tensor, about
CLOSE = 0.85  # fraction of the free space above which the size of the files is a warning


def check_config(plan: RunPlan) -> Iterator[Check]:
    """Reports the network and the learning rate by epoch; settings without effect are warnings."""
    config, kind = plan.config, plan.kind
    is_search = kind.command == "search"
    fields = ("channel", "n_layers") if is_search else BACKBONES[resolve_network_name(config.net_name)].fields
    size = "".join(f", {name} {shorten(getattr(config, name), quote=False)}" for name in fields)
    network = "supernet" if is_search else config.net_name
    yield Check("config", PASS, f"{network}{size}, embedding {config.embedding_size}, {config.precision}")
    rates = [(learning_rate(config, plan.processes, epoch), epoch) for epoch in range(config.num_epoch)]
    parts = [f"{rate:.3g} from {next(group)[1]}" for rate, group in itertools.groupby(rates, lambda pair: pair[0])]
    summary = ", ".join(parts) if len(parts) <= 8 else f"{rates[0][0]:.3g} to {rates[-1][0]:.3g}"
    yield Check("config", PASS, f"{config.num_epoch} epochs; learning rate by epoch {summary}")
    others = "; --kd checks ./train_kd.sh, --search NAS/search.sh" if kind.command == "train" else ""
    yield Check("config", PASS, f"checked for {kind.title} ({kind.script}{others})")
    warn_unused_fields(config, kind.command, kind.script)
    kind.check_config(config)


def check_device(plan: RunPlan) -> Iterator[Check]:
    """Reports the GPUs; without any, checks that there is a core for each process."""
    local = plan.world.size
    if plan.world.device.type == "cuda":
        gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        found = f"{format_processes(local)} here, {len(gpus)} GPUs: {', '.join(dict.fromkeys(gpus))}"
        yield Check("device", PASS, found)
    elif plan.config.device != "cpu" and shutil.which("nvidia-smi"):
        fix = "run nvidia-smi, check that CUDA_VISIBLE_DEVICES is not empty and that torch is built for CUDA"
        yield Check("device", WARN, "PyTorch finds no GPU here: the run would use the CPU", fix)
    else:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        state = WARN if local > cores else PASS
        fix = f"NPROC={cores} at most" if state == WARN else ""
        yield Check("device", state, f"CPU: {format_processes(local)} here, {cores} cores", fix)


def check_precision(plan: RunPlan) -> Iterator[Check]:
    """Checks whether the device supports the half precision and compilation that the config sets."""
    gpu = plan.world.device.type == "cuda"
    for name in ("precision", *(["teacher_precision"] if plan.kind.command == "train_kd" else [])):
        precision = getattr(plan.config, name)
        if precision == "tf32" and not (gpu and torch.cuda.get_device_capability(plan.world.device) >= (8, 0)):
            yield Check(
                "precision", WARN, f"{name}=tf32: this device has no TF32, and computes in fp32", f"{name}=fp32"
            )
        elif precision != "fp32" and not gpu:
            found = f"{name}={precision} on a CPU: several times slower if the CPU has no instructions for it"
            yield Check("precision", WARN, found, f"{name}=fp32")
        elif precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
            yield Check("precision", WARN, f"{name}=bf16: this GPU has no native bfloat16", f"{name}=fp16, or fp32")
    if plan.config.compile:
        # On a CPU it compiles each kernel; on a GPU it compiles the launchers of Triton kernels.
        default = "gcc" if gpu else "clang++" if sys.platform == "darwin" else "g++"
        compiler = os.environ.get("CC" if gpu else "CXX", default)
        if not shutil.which(compiler):
            found = f"compile=True, by {compiler}: not found"
            yield Check("precision", FAIL, found, f"install {compiler}, or compile=False")
        header = Path(sysconfig.get_path("include"), "Python.h")
        if not header.is_file():
            found = f"compile=True: no {header}, which compiled kernels include"
            yield Check("precision", FAIL, found, "install Python's headers (python3-dev), or compile=False")


def check_output(plan: RunPlan) -> Iterator[Check]:
    """Creates the folders that the run writes to."""
    cached = plan.kind.command == "train_kd" and plan.config.teacher_cache
    for name in ("output", "log_dir", *(["teacher_cache"] if cached else [])):
        yield from collect_checks("output", _check_folder(plan.config, name))


def _check_folder(config: Config, name: str) -> Iterator[Check]:
    """Creates the folder of a config field and yields a check that passes. Raises UserError if it cannot be written."""
    yield Check("output", PASS, f"{name}: {ensure_output_folder(config, name)} can be written")


def check_disk(plan: RunPlan) -> Iterator[Check]:
    """Compares the size of the files that the run will write to its output folder with the free space there."""
    if plan.task:
        need, free = output_bytes(plan), shutil.disk_usage(plan.config.output).free
        state = FAIL if need > free else WARN if need > CLOSE * free else PASS
        fix = "" if state == PASS else "free disk space, or name a folder on a larger disk: output=FOLDER"
        found = f"{format_bytes(need)} to be written in {Path(plan.config.output)}, {format_bytes(free)} free"
        yield Check("disk", state, found, fix)


def output_bytes(plan: RunPlan) -> float:
    """Returns the bytes that the run will add to its output folder.

    These are the exported weights of every epoch left, config.keep checkpoints, and one more that is being written.
    """
    config, task = plan.config, plan.task
    assert task
    exported = sum(
        tensor.nbytes * (plan.world.size if isinstance(module, ShardedHeader) else 1) + TENSOR_HEADER
        for module in task.exported_modules(0).values()
        for tensor in module.state_dict().values()
    )
    checkpoint = (1 + _state_ratio(task, config)) * exported  # weights and optimizer state
    epochs = plan.epochs_left + (config.save_initial and not plan.resume_point.progress.step)
    return epochs * exported + max(1, config.keep + 1 - plan.replaced) * checkpoint


def _state_ratio(task: Task, config: Config) -> float:
    """Returns the size of the optimizer's state relative to that of the weights that it trains."""
    optimizer = make_optimizer(task, config)
    fill_optimizer_state(optimizer)
    weights = sum(parameter.nbytes for group in optimizer.param_groups for parameter in group["params"])
    return sum(value.nbytes for state in optimizer.state.values() for value in state.values()) / weights
