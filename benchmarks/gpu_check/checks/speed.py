"""Speed of training steps, eager and replayed as a CUDA graph, the kernels that take longest, and both headers.

The step is that of the engine, utils/training/optimizer_step.py, on one batch that stays on the device: neither the
loader nor the logs count. The graph is captured here only; the engine does not use one. It holds the whole step: both
passes, clipping, the check for non-finite values and SGD, whose learning rate is a tensor for the purpose.
"""

from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from backbones.build import build_backbone
from benchmarks.gpu_check.stages import Context
from benchmarks.gpu_check.support.networks import draw_images, draw_labels, network_config
from benchmarks.header import header_tensor_bytes, peak_bytes, step_seconds
from benchmarks.measures import median_seconds, relative_error, synchronize
from config.base import Config
from utils.distributed.process_group import World, init_distributed, to_device
from utils.losses.header import make_header
from utils.training.arcface_task import ArcFaceTask
from utils.training.optimizer_step import OptimizerStep
from utils.training.task import Batch

CLASSES, SMALL_CLASSES = 85742, 500  # those of MS1MV2; on a CPU
KERNELS = 25
PROFILED_BATCH = 256


@dataclass(frozen=True)
class TrainStep:
    """A step of the engine on a batch that stays the same, and the tensors that it changes."""

    step: OptimizerStep
    batch: Batch

    def __call__(self) -> Tensor:
        """Takes the step and returns its loss."""
        losses, _ = self.step(self.batch, 1)
        self.step.nonfinite._pending.clear()  # what the engine reads when it writes a log line
        return losses["Loss"].detach()

    def state(self) -> list[Tensor]:
        """Returns all weights, running statistics and momenta."""
        optimizer = self.step.optimizer
        momenta = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
        modules = nn.ModuleList([self.step.task.backbone, self.step.task.header])
        return [*modules.parameters(), *modules.buffers(), *momenta]


def run(context: Context) -> None:
    """Measures steps, kernels and headers."""
    with init_distributed(context.device) as world:
        batches = (128, 256, 512) if context.on_gpu else (2, 3)
        for batch in batches:
            _measure_steps(context, world, batch, "bf16")
        for precision in ("fp32", "tf32"):
            _measure_steps(context, world, batches[1], precision)
        with _choose_algorithms():
            _measure_steps(context, world, batches[1], "bf16", ", cudnn.benchmark")
        with context.report.part("kernels"):
            _list_kernels(context, world, PROFILED_BATCH if context.on_gpu else batches[0])
        for variant, sample_rate in (("replicated", 1.0), ("sharded", 1.0), ("sharded", 0.1)):
            with context.report.part(f"header, {variant}, {sample_rate:g}"):
                _measure_header(context, world, variant, sample_rate)


@contextmanager
def _choose_algorithms() -> Iterator[None]:
    """Makes cuDNN try its algorithms for each convolution and take the fastest."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def make_step(config: Config, world: World, classes: int) -> TrainStep:
    """Returns a step of a new network."""
    torch.manual_seed(0)
    backbone = to_device(build_backbone(config), world).train()
    task = ArcFaceTask(backbone, make_header(config, classes, world))
    step = OptimizerStep(task, torch.arange(config.batch_size).numpy(), config, world)
    step.set_learning_rate(0)
    images = draw_images(config.batch_size).to(world.device)
    labels = draw_labels(config.batch_size, classes).to(world.device)
    indices = torch.arange(config.batch_size)
    return TrainStep(step, Batch(images, labels, indices, torch.zeros(len(indices), dtype=torch.bool)))


def _measure_steps(context: Context, world: World, batch: int, precision: str, how: str = "") -> None:
    """Measures the step eagerly and as a graph, and compares their results."""
    classes = CLASSES if context.on_gpu else SMALL_CLASSES
    check = f"step, batch {batch}, {precision}{how}"
    with context.report.part(check):
        config = network_config(context, f"batch_size={batch}", f"precision={precision}")
        step = make_step(config, world, classes)
        repeats = 5 if context.on_gpu else 2
        if context.on_gpu:
            torch.cuda.reset_peak_memory_stats()
        seconds = median_seconds(step, world.device, repeats, calls=3)
        memory = f"{torch.cuda.max_memory_allocated() / 2**30:.2f} GiB" if context.on_gpu else ""
        context.report.measure(f"{check}, eager", batch / seconds, "img/s", memory)
        if not context.on_gpu:
            context.report.leave_out(f"{check}, graph", "needs a GPU")
            return
        replay = capture(step, world.device)
        seconds = median_seconds(replay, world.device, repeats, calls=10)
        context.report.measure(f"{check}, graph", batch / seconds, "img/s")
        if not how:
            error = compare_with_replay(step, replay)
            limit = 1e-3 if precision == "fp32" else 2e-2  # of the loss; a GPU may add in another order each time
            context.report.compare(f"{check}, loss of the graph", error, limit)


def capture(step: TrainStep, device: torch.device) -> Callable[[], Tensor]:
    """Captures the step as a CUDA graph and returns a function that replays it and returns its loss."""
    for group in step.step.optimizer.param_groups:
        group["lr"] = torch.tensor(group["lr"], device=device)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # libraries allocate their memory before the capture
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step()

    def replay() -> Tensor:
        graph.replay()
        return loss

    return replay


def compare_with_replay(step: TrainStep, replay: Callable[[], Tensor]) -> float:
    """Returns the largest relative difference of the losses of three eager steps and three replays from one state."""
    state = step.state()
    saved = [tensor.detach().clone() for tensor in state]
    eager = torch.stack([step().clone() for _ in range(3)])
    with torch.no_grad():
        for tensor, value in zip(state, saved, strict=True):
            tensor.copy_(value)
    replayed = torch.stack([replay().clone() for _ in range(3)])
    return relative_error(replayed.double().cpu(), eager.double().cpu())


def _list_kernels(context: Context, world: World, batch: int) -> None:
    """Writes the kernels (on a CPU: the operations) of an eager step that take the longest time."""
    config = network_config(context, f"batch_size={batch}", "precision=bf16")
    step = make_step(config, world, CLASSES if context.on_gpu else SMALL_CLASSES)
    for _ in range(3):
        step()
    synchronize(world.device)
    steps = 3 if context.on_gpu else 1
    activities = [ProfilerActivity.CUDA] if context.on_gpu else [ProfilerActivity.CPU]
    with profile(activities=activities) as profiler:
        for _ in range(steps):
            step()
        synchronize(world.device)
    kind = DeviceType.CUDA if context.on_gpu else DeviceType.CPU
    events = [event for event in profiler.key_averages() if event.device_type == kind and not _is_annotation(event)]
    times = {
        event.key: (event.self_device_time_total if context.on_gpu else event.self_cpu_time_total) / steps
        for event in events
    }  # microseconds of a step
    counts = {event.key: event.count / steps for event in events}
    total = sum(times.values())
    if not total:
        context.report.leave_out("kernels", "the profiler has seen none")
        return
    launches = f"{sum(counts.values()):.0f} of {len(times)} kinds in a step of {batch} images"
    context.report.measure("all kernels", total / 1000, "ms", launches)
    for name in sorted(times, key=times.__getitem__, reverse=True)[:KERNELS]:
        note = f"{100 * times[name] / total:.1f} %, {counts[name]:.0f} times"
        context.report.measure(f"kernel {name}", times[name] / 1000, "ms", note)


def _is_annotation(event: Any) -> bool:
    """Whether an event is a named block of Python code, which contains others."""
    return getattr(event, "is_user_annotation", False) or event.key.startswith(("Optimizer.", "autograd::"))


def _measure_header(context: Context, world: World, variant: str, sample_rate: float) -> None:
    """Measures a step of the header alone, as benchmarks/header.py does."""
    classes, batch, size = (CLASSES, 512, 128) if context.on_gpu else (SMALL_CLASSES, 8, 32)
    args = Namespace(embedding_size=size, batch=batch, steps=7 if context.on_gpu else 2, sample_rate=sample_rate)
    if context.on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    before = peak_bytes(world)
    seconds = sorted(step_seconds(variant, args, classes, world))
    used = (peak_bytes(world) - before) / 2**20
    needed = header_tensor_bytes(variant, size, classes, 1, batch, sample_rate) / 2**20
    note = f"{used:.0f} MiB, by formula {needed:.0f}" if context.on_gpu else ""
    name = f"header, {variant}{f', {sample_rate:g} of the classes' if sample_rate < 1 else ''}, batch {batch}"
    context.report.measure(name, batch / seconds[len(seconds) // 2], "img/s", note)
