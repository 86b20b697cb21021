"""Times of work on a device, errors of its results, and the name of the machine."""

import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import Tensor


def synchronize(device: torch.device) -> None:
    """Waits until the device has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def median_seconds(work: Callable[[], object], device: torch.device, repeats: int = 5, calls: int = 1) -> float:
    """Returns the seconds of one call of `work`, the median of `repeats` measurements after one call to warm up.

    calls: per measurement, between two waits for the device.
    """
    work()
    synchronize(device)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        for _ in range(calls):
            work()
        synchronize(device)
        seconds.append((time.perf_counter() - start) / calls)
    return median(seconds)


def relative_error(found: Tensor, exact: Tensor) -> float:
    """Returns the length of the difference, relative to that of the exact value."""
    return float(torch.linalg.vector_norm(found - exact) / torch.linalg.vector_norm(exact))


def describe_machine(device: torch.device) -> str:
    """Returns the device's name, the number of cores and torch's version."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name()
    else:
        info = Path("/proc/cpuinfo")
        lines = info.read_text().splitlines() if info.exists() else []
        name = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())
    return f"{name}, {os.cpu_count()} cores, torch {torch.__version__}"
