"""Ways to train a network, each in a process of its own that takes its steps when it is asked to."""

import logging
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast

import torch

from backbones.build import build_backbone
from benchmarks.measures import synchronize
from benchmarks.training.kernels import Profile, profile_steps
from benchmarks.training.plain import make_plain, plain_steps, with_waits
from config import load_config
from config.base import Config
from utils.datasets.shared_buffers import HostBatch
from utils.distillation.task import DistillTask, prepare_distillation
from utils.distillation.teacher import NetworkTeacher, teacher_network_config
from utils.distributed.process_group import World, init_distributed, select_device
from utils.doctor.training import peak_memory
from utils.errors import UserError
from utils.logs.logger import log
from utils.training.arcface_task import make_arcface_task
from utils.training.checkpointing.resume import ResumePoint
from utils.training.engine import train
from utils.training.prepare import prepare_training

PROFILED_STEPS = 3


@dataclass(frozen=True)
class Variant:
    """A way to train: the plain loop or the engine, with config fields set.

    Attributes:
        teacher: name of a network to distil from, with random weights; empty: no teacher.
    """

    name: str
    is_plain: bool = False
    settings: tuple[str, ...] = ()
    teacher: str = ""


@dataclass(frozen=True)
class Turn:
    """Measured steps of one turn."""

    seconds: float  # of one step
    waited: float  # of these, for the batch
    peak_memory: int  # bytes so far, of the GPU or of the process


class VariantProcess:
    """A process that trains by a variant, for as many steps as are asked of it at a time."""

    def __init__(self, variant: Variant, config_file: str, overrides: list[str]) -> None:
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's own messages
        context = multiprocessing.get_context("spawn")
        self._connection, child = context.Pipe()
        arguments = (variant, config_file, [*overrides, *variant.settings], child)
        self._process = context.Process(target=_serve, args=arguments, daemon=False)
        self._process.start()
        child.close()
        self.start_seconds = float(self._receive())  # to the end of the first step

    def run(self, steps: int) -> Turn:
        """Trains for some steps. Raises UserError as the training did."""
        return self._ask(("run", steps))

    def profile(self) -> Profile:
        """Returns where the time of a step goes."""
        return self._ask(("profile", PROFILED_STEPS))

    def close(self) -> None:
        """Ends the process."""
        self._connection.close()
        self._process.join()

    def _ask(self, request: tuple[str, int]) -> Any:
        self._connection.send(request)
        return self._receive()

    def _receive(self) -> Any:
        try:
            answer = self._connection.recv()
        except EOFError:
            self._process.join()
            raise UserError(f"a process of the benchmark ended with exit code {self._process.exitcode}") from None
        if isinstance(answer, UserError):
            raise answer
        return answer


class _Ended(BaseException):
    """Ends the training when no more steps are asked for."""


class _Steps:
    """Counts the steps of a training, and answers each request once its steps are taken."""

    def __init__(self, connection: Connection, device: torch.device) -> None:
        self.waited = 0.0  # seconds, of the present turn
        self._connection = connection
        self._device = device
        self._created = time.perf_counter()
        self._requests = self._serve_requests()
        next(self._requests)

    def after_step(self) -> None:
        """Called after every step; returns when the next one is wanted. Raises _Ended when none is."""
        next(self._requests, None)

    def _serve_requests(self) -> Iterator[None]:
        yield
        synchronize(self._device)
        self._connection.send(time.perf_counter() - self._created)
        while True:
            try:
                request, steps = self._connection.recv()
            except EOFError:
                raise _Ended from None
            if request == "profile":
                with profile_steps(self._device, steps) as profile:
                    for _ in range(steps + 1):
                        yield
                        synchronize(self._device)
                        profile.after_step()
                self._connection.send(profile.result)
                continue
            self.waited, start = 0.0, time.perf_counter()
            for _ in range(steps):
                yield
            synchronize(self._device)
            seconds = (time.perf_counter() - start) / steps
            self._connection.send(Turn(seconds, self.waited / steps, self._peak_memory()))
            if self._device.type == "cuda":
                torch.cuda.empty_cache()  # for the variants whose turn it is next

    def _peak_memory(self) -> int:
        return torch.cuda.max_memory_allocated() if self._device.type == "cuda" else peak_memory()


def _serve(variant: Variant, config_file: str, overrides: list[str], connection: Connection) -> None:
    """Trains by a variant in this process, at the pace of the requests on the connection."""
    log.setLevel(logging.ERROR)
    try:
        config = load_config(config_file, overrides, distillation=bool(variant.teacher))
        # What init_distributed sets on CPUs, for memory and denormal numbers, is not part of a plain loop.
        plain = nullcontext(World(0, 1, select_device(config.device)))
        with (
            plain if variant.is_plain else init_distributed(config.device) as world,
            tempfile.TemporaryDirectory() as folder,
        ):
            config = replace(config, **_quiet_fields(folder))
            if variant.teacher:
                config = _with_random_teacher(config, Path(folder, "teacher"))
            _train(variant, config, world, _Steps(connection, world.device))
    except UserError as error:
        connection.send(error)
    except _Ended:
        pass


def _quiet_fields(folder: str) -> dict[str, Any]:
    """Returns the fields of a run that writes nothing between its steps."""
    never = sys.maxsize
    return {
        "output": folder, "log_dir": folder, "eval_step": 1, "save_step": never, "log_step": never,
        "save_initial": False, "max_bad_steps": never,
    }  # fmt: skip


def _with_random_teacher(config: Config, folder: Path) -> Config:
    """Returns the config with a teacher of random weights, on which speed does not depend."""
    folder.mkdir()
    torch.save(build_backbone(teacher_network_config(config)).state_dict(), folder / "1backbone.pth")
    return replace(config, teacher_pth=str(folder), teacher_global_step=1)


def _train(variant: Variant, config: Config, world: World, steps: _Steps) -> None:
    """Trains until steps.after_step ends it."""
    if variant.teacher:
        run = prepare_distillation(build_backbone, config, world)
    else:
        run = prepare_training(build_backbone, make_arcface_task, config, world)
    task = run.make_task(ResumePoint())
    if variant.is_plain:
        make_plain(task.backbone)
        if isinstance(task, DistillTask):
            make_plain(cast(NetworkTeacher, task.targets.teacher).network)
        for waited in plain_steps(task, run.loader.dataset, config, world):
            steps.waited += waited
            steps.after_step()

    def after_step(step: int) -> dict[str, float]:
        steps.after_step()
        return {}

    read_batches = run.loader.iter_epoch

    def iter_epoch(epoch: int, samples_seen: int = 0) -> Iterator[HostBatch]:
        for batch, waited in with_waits(read_batches(epoch, samples_seen)):
            steps.waited += waited
            yield batch

    run.loader.iter_epoch = iter_epoch  # type: ignore[method-assign]
    train(task, run.loader, config, world, verify=after_step)
