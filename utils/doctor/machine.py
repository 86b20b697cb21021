"""What the machine can do: its devices, half precision, compilation."""

import os
import shutil
import sys
from collections.abc import Iterator

import torch

from utils.doctor.plan import Run
from utils.doctor.table import FAIL, PASS, WARN, Check, format_processes


def device(plan: Run) -> Iterator[Check]:
    """GPUs, or the CPU."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    if gpus:
        state = FAIL if plan.local > len(gpus) else PASS
        found = f"{format_processes(plan.local)} here, {len(gpus)} GPUs: {', '.join(dict.fromkeys(gpus))}"
        yield Check("device", state, found, f"NPROC={len(gpus)} at most" if state == FAIL else "")
    elif shutil.which("nvidia-smi"):
        fix = "see what nvidia-smi says, that CUDA_VISIBLE_DEVICES is not empty, and that torch is a build for CUDA"
        yield Check("device", WARN, "PyTorch finds no GPU here: the run would be on the CPU", fix)
    else:
        state = WARN if plan.local > cores else PASS
        found = f"CPU: {format_processes(plan.local)} here, {cores} cores"
        yield Check("device", state, found, f"NPROC={cores} at most" if state == WARN else "")


def precision(plan: Run) -> Iterator[Check]:
    """Half precision and compilation, where they are asked for."""
    gpu = plan.world.device.type == "cuda"
    for name in ("precision", *(["teacher_precision"] if plan.distils else [])):
        kind = plan.config[name]
        if kind != "fp32" and not gpu:
            found = f"{name}={kind} on a CPU: where it has no instructions for it, several times slower"
            yield Check("precision", WARN, found, f"{name}=fp32")
        elif kind == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
            yield Check("precision", WARN, f"{name}=bf16: this GPU has no bfloat16 of its own", f"{name}=fp16, or fp32")
        elif kind != "fp32":
            yield Check("precision", PASS, f"{name}={kind}")
    if plan.config.compile:
        yield _compiler(gpu)


def _compiler(gpu: bool) -> Check:
    # What torch compiles by: on a CPU each kernel, on a GPU (Triton) what starts them.
    default = "gcc" if gpu else "clang++" if sys.platform == "darwin" else "g++"
    compiler = os.environ.get("CC" if gpu else "CXX", default)
    found = f"compile=True, by {compiler}"
    if shutil.which(compiler):
        return Check("precision", PASS, found)
    return Check("precision", FAIL, f"{found}: not here", f"install {compiler}, or compile=False")
