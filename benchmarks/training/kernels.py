"""Where the time of a training step goes, by kind of operation."""

import re
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, schedule

Profile = dict[str, float]  # kind of operation -> its share of the time of all operations, the largest first

# The first pattern that an operation's name matches gives its kind; "{conv}" is replaced by the kind of convolution.
_KINDS = [
    (r"evaluate_function: Convolution", "{conv}, backward"),
    (r"conv2d", "{conv}, forward"),
    (r"evaluate_function: \w*BatchNorm", "batch norm, backward"),
    (r"batch_norm", "batch norm, forward"),
    (r"evaluate_function: \w*(PReLU|Prelu)", "PReLU, backward"),
    (r"prelu|PReLU", "PReLU, forward"),
    (r"evaluate_function: \w*Pool", "pooling, backward"),
    (r"pool", "pooling, forward"),
    (r"Optimizer|_foreach|_fused|clip|norm", "optimizer and clipping"),
    (r"AccumulateGrad", "gradients to parameters"),
    (
        r"aten::add|evaluate_function: Add|aten::cat|evaluate_function: (Cat|Slice)|aten::slice",
        "sums and concatenations",
    ),
    (r"Mm|mm|matmul|softmax|Softmax|gather|scatter|Scatter|Gather|nll|Nll|cross_entropy", "header and loss"),
]


class _Profiling:
    """A profile that is being made; `result` is there once the block has ended."""

    result: Profile

    def __init__(self, profiler: profile) -> None:
        self.after_step = profiler.step


@contextmanager
def profile_steps(device: torch.device, steps: int) -> Iterator[_Profiling]:
    """Profiles the block, in which one step more is taken, the first, which is slower, without being measured.

    The block calls after_step after each of them. The result says where their time went.
    """
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    plan = schedule(wait=0, warmup=1, active=steps)
    with profile(activities=activities, record_shapes=True, schedule=plan, acc_events=True) as profiler:
        profiling = _Profiling(profiler)
        yield profiling
    totals: defaultdict[str, float] = defaultdict(float)
    for event in profiler.events():
        if _is_outermost(event):
            microseconds = event.device_time_total if on_gpu else event.cpu_time_total
            totals[_kind(event)] += microseconds
    ordered = sorted(totals.items(), key=lambda item: -item[1])
    profiling.result = {kind: time / sum(totals.values()) for kind, time in ordered if time}


def _is_outermost(event: Any) -> bool:
    """Whether the event is an operation that no other one called."""
    is_step = event.name.startswith("ProfilerStep")
    called_by_step = event.cpu_parent is None or event.cpu_parent.name.startswith("ProfilerStep")
    return called_by_step and not is_step and str(event.device_type).endswith("CPU")


def _kind(event: Any) -> str:
    """Returns the kind of an outermost operation."""
    for pattern, kind in _KINDS:
        if re.search(pattern, event.name):
            return kind.format(conv=_kind_of_convolution(event))
    return "other"


def _kind_of_convolution(event: Any) -> str:
    """Returns the kind by the shape of the weight (c_out, c_in of a group, k, k)."""
    shapes = _shapes(event)
    _, groups_in, rows, columns = shapes[-1] if shapes else (0, 0, 0, 0)
    if groups_in == 1:
        return f"depthwise convolution {rows}×{columns}"
    return "pointwise convolution" if rows == columns == 1 else "other convolution"


def _shapes(event: Any) -> list[list[int]]:
    """Returns the shapes of the images or maps and of the weight of a convolution, forward or backward."""
    if event.name in ("aten::conv2d", "aten::convolution_backward"):
        return [shape for shape in event.input_shapes if len(shape) == 4]
    return next((shapes for child in event.cpu_children if (shapes := _shapes(child))), [])
