"""Checks of the machine: devices, half precision, and compilers."""

import os
import shutil
import sys
from collections.abc import Iterator

import torch

from utils.doctor.plan import RunPlan
from utils.doctor.table import FAIL, PASS, WARN, Check, format_processes


def check_device(plan: RunPlan) -> Iterator[Check]:
    """Checks that there is a GPU for each process, or a core for each process without GPUs."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    if gpus:
        state = FAIL if plan.local_processes > len(gpus) else PASS
        found = f"{format_processes(plan.local_processes)} here, {len(gpus)} GPUs: {', '.join(dict.fromkeys(gpus))}"
        yield Check("device", state, found, f"NPROC={len(gpus)} at most" if state == FAIL else "")
    elif shutil.which("nvidia-smi"):
        fix = "run nvidia-smi, check that CUDA_VISIBLE_DEVICES is not empty and that torch is built for CUDA"
        yield Check("device", WARN, "PyTorch finds no GPU here: the run would use the CPU", fix)
    else:
        state = WARN if plan.local_processes > cores else PASS
        found = f"CPU: {format_processes(plan.local_processes)} here, {cores} cores"
        yield Check("device", state, found, f"NPROC={cores} at most" if state == WARN else "")


def check_precision(plan: RunPlan) -> Iterator[Check]:
    """Checks whether the device supports the half precision and compilation that the config sets."""
    gpu = plan.world.device.type == "cuda"
    for name in ("precision", *(["teacher_precision"] if plan.distils else [])):
        precision = getattr(plan.config, name)
        if precision != "fp32" and not gpu:
            found = f"{name}={precision} on a CPU: several times slower if the CPU has no instructions for it"
            yield Check("precision", WARN, found, f"{name}=fp32")
        elif precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
            yield Check("precision", WARN, f"{name}=bf16: this GPU has no native bfloat16", f"{name}=fp16, or fp32")
        elif precision != "fp32":
            yield Check("precision", PASS, f"{name}={precision}")
    if plan.config.compile:
        yield _check_compiler(gpu)


def _check_compiler(gpu: bool) -> Check:
    """Checks that the C or C++ compiler which torch.compile needs is installed."""
    # On a CPU it compiles each kernel; on a GPU it compiles the launchers of Triton kernels.
    default = "gcc" if gpu else "clang++" if sys.platform == "darwin" else "g++"
    compiler = os.environ.get("CC" if gpu else "CXX", default)
    found = f"compile=True, by {compiler}"
    if shutil.which(compiler):
        return Check("precision", PASS, found)
    return Check("precision", FAIL, f"{found}: not found", f"install {compiler}, or compile=False")
