"""Versions, missing packages, and the speed of memory and arithmetic, by which other speeds can be judged."""

import os
import platform
from importlib.util import find_spec

import numpy as np
import torch

from benchmarks.gpu_check.stages import FALLBACKS, Context
from benchmarks.measures import median_seconds
from utils.distributed.process_group import World, init_distributed

PACKAGES = ("scipy", "cv2", "easydict", "tensorboard", "tqdm", "matplotlib", "openvino", "safetensors", "onnxruntime")
MIB = 1 << 20


def run(context: Context) -> None:
    """Writes the rows of the machine."""
    with init_distributed(context.device) as world:
        _tell_versions(context, world)
        with context.report.part("memory"):
            _measure_memory(context, world)
        with context.report.part("arithmetic"):
            _measure_arithmetic(context, world)


def _tell_versions(context: Context, world: World) -> None:
    tell = context.report.tell
    tell("Python, torch, numpy", f"{platform.python_version()}, {torch.__version__}, {np.__version__}")
    if context.on_gpu:
        properties = torch.cuda.get_device_properties(world.device)
        capability = ".".join(map(str, torch.cuda.get_device_capability(world.device)))
        memory = f"{properties.total_memory / 2**30:.0f} GiB, {properties.multi_processor_count} multiprocessors"
        tell("GPU", f"{torch.cuda.device_count()} × {properties.name}, {memory}, compute capability {capability}")
        nccl = ".".join(map(str, torch.cuda.nccl.version()))
        tell("CUDA, cuDNN, NCCL", f"{torch.version.cuda}, {torch.backends.cudnn.version()}, {nccl}")
    tell("CPU", f"{os.cpu_count()} cores, {torch.get_num_threads()} threads")
    missing = [name for name in PACKAGES if _is_missing(name)]
    named = [f"{name} (a stand-in serves)" if (FALLBACKS / name).is_dir() else name for name in missing]
    tell("missing packages", ", ".join(named) or "none")


def _is_missing(package: str) -> bool:
    """Whether a package is not installed; a stand-in does not count."""
    found = find_spec(package)
    return found is None or str(found.origin).startswith(str(FALLBACKS))


def _measure_memory(context: Context, world: World) -> None:
    """Measures copies of large tensors, within the device and to it."""
    size = (2048 if context.on_gpu else 64) * MIB
    source, target = (torch.empty(size, dtype=torch.uint8, device=world.device) for _ in range(2))
    source.random_()
    seconds = median_seconds(lambda: target.copy_(source), world.device)
    context.report.measure("copy within the device", 2 * size / seconds / 1e9, "GB/s", "bytes read and written")
    host = torch.empty(size // 8, dtype=torch.uint8, pin_memory=context.on_gpu)
    part = target[: size // 8]
    seconds = median_seconds(lambda: part.copy_(host, non_blocking=True), world.device)
    context.report.measure("copy from the host, pinned", size / 8 / seconds / 1e9, "GB/s")
    if context.on_gpu:
        seconds = median_seconds(lambda: target[:1].add_(1), world.device, repeats=20, calls=100)
        context.report.measure("launch of a kernel", seconds * 1e6, "µs")


def _measure_arithmetic(context: Context, world: World) -> None:
    """Measures square matrix products."""
    n = 8192 if context.on_gpu else 256
    for dtype in (torch.bfloat16, torch.float32):
        a, b = (torch.randn(n, n, device=world.device, dtype=dtype) for _ in range(2))
        seconds = median_seconds(lambda a=a, b=b: a @ b, world.device)  # type: ignore[misc]
        name = str(dtype).removeprefix("torch.")
        context.report.measure(f"matrix product of {n}², {name}", 2 * n**3 / seconds / 1e12, "TFLOP/s")
