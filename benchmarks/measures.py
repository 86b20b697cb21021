"""Times of work on a device, and errors of its results."""

import time
from collections.abc import Callable
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
