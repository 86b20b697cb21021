"""Measures where the time of a training run goes, from the first step to the last file.

    python benchmarks/epoch.py --config config/config_demo.py max_steps=60
    python benchmarks/epoch.py --config config/config_PocketNetS128.py rec=FOLDER num_classes=0 num_image=0 …

Runs train.py with the config, in a folder that is removed afterwards, and times its phases from outside. "data" is the
time in which training waits for images and moves them to the device; "other" is the loop itself, logs and curves. On a
GPU each phase waits for the device, so that its work counts where it was queued. The last table compares verification
with the forward passes in it.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

if not __package__:  # run as a script: import modules from the project folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

import train
from backbones.build import build_backbone
from benchmarks.measures import describe_machine, synchronize
from config import parse_command
from config.base import Config
from eval.inference.embedding import TorchRuntime
from eval.scoring import Scorer
from utils.checkpoints.async_writer import AsyncFileWriter
from utils.datasets.shared_loader import SharedMemoryLoader
from utils.distributed.process_group import select_device
from utils.errors import run_cli
from utils.training import engine
from utils.training.arcface_task import ArcFaceTask, make_arcface_task
from utils.training.checkpointing.saving import RunSaver
from utils.training.optimizer_step import OptimizerStep
from utils.training.prepare import prepare_training

PHASES = ("data", "forward", "backward", "optimizer", "verification", "checkpoint", "other")
# What runs in each phase. A phase within another one counts for itself alone.
CALLS: list[tuple[Any, str, str]] = [
    (engine, "train", "other"),
    (engine, "_device_batch", "data"),
    (ArcFaceTask, "__call__", "forward"),
    (torch.Tensor, "backward", "backward"),
    (OptimizerStep, "__call__", "optimizer"),
    (Scorer, "accuracies", "verification"),
    (TorchRuntime, "__call__", "verification passes"),
    (engine, "export_jobs", "checkpoint"),
    (RunSaver, "save_if_due", "checkpoint"),
    (RunSaver, "save_epoch", "checkpoint"),
    (AsyncFileWriter, "__exit__", "checkpoint"),
]


class Stopwatch:
    """Adds up the seconds of phases. A phase that begins within another one stops that one's clock."""

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = {}
        self._device = device
        self._running: list[str] = []
        self._since = 0.0

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Counts what is done within as a phase."""
        self._lap()
        self._running.append(name)
        try:
            yield
        finally:
            self._lap()
            self._running.pop()

    def time_call(self, call: Callable[..., Any], name: str) -> Callable[..., Any]:
        """Returns the function, which counts as a phase."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.phase(name):
                return call(*args, **kwargs)

        return timed

    def time_iterations(self, make: Callable[..., Iterator[Any]], name: str) -> Callable[..., Iterator[Any]]:
        """Returns the generator function, whose every item counts as a phase until it is there."""

        def timed(*args: Any, **kwargs: Any) -> Iterator[Any]:
            items = make(*args, **kwargs)
            while True:
                with self.phase(name):
                    item = next(items, None)
                if item is None:
                    return
                yield item

        return timed

    def _lap(self) -> None:
        synchronize(self._device)
        now = time.perf_counter()
        if self._running:
            self.seconds[self._running[-1]] = self.seconds.get(self._running[-1], 0.0) + now - self._since
        self._since = now


def main() -> None:
    """Runs the training and prints the table."""
    config = parse_command("Measure where the time of a training run goes.")
    device = select_device(config.device)
    stopwatch = Stopwatch(device)
    with tempfile.TemporaryDirectory() as folder:
        config = replace(config, output=str(Path(folder, "output")), log_dir=str(Path(folder, "logs")))
        started = time.perf_counter()
        run_timed(config, stopwatch)
        total = time.perf_counter() - started
    print("\n" + format_table(stopwatch.seconds, total))
    print(f"\n{describe_machine(device)}, {config.net_name}, batches of {config.batch_size}")


def run_timed(config: Config, stopwatch: Stopwatch) -> None:
    """Runs train.py in this process while the stopwatch counts its phases."""
    with ExitStack() as stack:
        for owner, attribute, phase in CALLS:
            timed = stopwatch.time_call(getattr(owner, attribute), phase)
            stack.enter_context(mock.patch.object(owner, attribute, timed))
        batches = stopwatch.time_iterations(SharedMemoryLoader.iter_epoch, "data")
        stack.enter_context(mock.patch.object(SharedMemoryLoader, "iter_epoch", batches))
        stack.enter_context(mock.patch.object(train, "train", engine.train))
        prepare = partial(prepare_training, build_backbone, make_arcface_task)
        train.run_training(config, "train", ArcFaceTask, prepare)


def format_table(seconds: dict[str, float], total: float) -> str:
    """Returns the seconds of each phase and its share of those between the start-up and the end.

    seconds: by phase. total: of the whole command.
    """
    passes = seconds.pop("verification passes", 0.0)
    verification = seconds.get("verification", 0.0) + passes
    phases = seconds | {"verification": verification}
    trained = sum(phases.values())
    lines = [f"{phase:14}{phases.get(phase, 0.0):>9.2f} s{phases.get(phase, 0.0) / trained:>8.1%}" for phase in PHASES]
    lines.append(f"{'start-up':14}{total - trained:>9.2f} s")
    if passes:
        lines.append(f"verification takes {verification / passes:.2f} times as long as its forward passes")
    return "\n".join(lines)


if __name__ == "__main__":
    run_cli(main)
