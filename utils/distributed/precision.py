"""Number formats in which networks compute: the one place that decides where TF32 and denormal numbers are allowed.

TF32 multiplies float32 numbers on NVIDIA GPUs with the 10 bits of mantissa that fp16 has. torch allows it in
convolutions by default; here only precision="tf32" does. So fp32 is float32 everywhere: in training, in evaluation, of
a teacher and in its cache, and in the finite differences of the search. Matrix products, which are the header's, never
use TF32.

Denormal numbers are those below 1.2e-38, the smallest that float32 holds with all its bits. Weight decay leaves
thousands of weights so small that products with them are denormal, with which CPUs take several times as long.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

PRECISIONS = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def allow_tf32(allowed: bool) -> None:
    """Allows TF32 in convolutions of this process, or forbids it."""
    # Not fp32_precision, the newer name: torch then refuses to read this one, which its compiler does.
    torch.backends.cudnn.allow_tf32 = allowed


@contextmanager
def tf32_of(precision: str) -> Iterator[None]:
    """Allows TF32 in the block if the precision is tf32, else forbids it. A backward pass needs the block too."""
    before = torch.backends.cudnn.allow_tf32
    allow_tf32(precision == "tf32")
    try:
        yield
    finally:
        allow_tf32(before)


@contextmanager
def flush_denormals() -> Iterator[None]:
    """Makes x86 CPUs count denormal numbers as zero in the block, in this thread and in those that it starts.

    A training step of PocketNetS-128 with the published weights takes 0.4 of the time on an Intel Xeon.
    """
    before = flushes_denormals()
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


def flushes_denormals() -> bool:
    """Whether this thread counts denormal numbers as zero."""
    return bool(torch.tensor(1e-39) == 0)
