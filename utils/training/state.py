"""Everything that changes while a run trains, taken for a checkpoint and put back from it."""

from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from easydict import EasyDict
from torch import Tensor, nn

from utils.checkpoints.run_file import CHECKPOINT_FILE, VERSION
from utils.checkpoints.weights import as_checkpoint_error, check_state, load_state, load_weights, read_weights, snapshot
from utils.datasets.shared_loader import Loader
from utils.distributed.collectives import broadcast_, run_on_all, run_on_main
from utils.distributed.exit_status import run_ids
from utils.distributed.process_group import World, unwrap_ddp
from utils.losses.partial_fc import ShardedArcFace, gather_columns, load_full, scatter_columns
from utils.training.optimizer_step import OptimizerStep
from utils.training.progress import TrainProgress
from utils.training.resume import ResumePoint, config_values
from utils.training.task import Task


def gather_full_state_dict(module: nn.Module, tensors: dict[str, Tensor], world: World) -> dict[str, Tensor] | None:
    """A copy, on the CPU, of a module's tensors by name, for the main process; None for the others, which take part:
    a sharded header is put together from all."""
    if not isinstance(module, ShardedArcFace):
        return snapshot(tensors) if world.is_main else None
    columns = {name: gather_columns(value, module.n_classes, module.world) for name, value in tensors.items()}
    return {name: value for name, value in columns.items() if value is not None} or None


class Means(Protocol):
    """The losses summed since the last line of the log."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class TrainingState:
    """Weights, momentum, scaler, the task's own, and of each process: running statistics, random generators, meters."""

    def __init__(
        self, task: Task, optimizer_step: OptimizerStep, means: Means, loader: Loader, config: EasyDict, world: World
    ) -> None:
        self.task = task
        self.optimizer, self.scaler, self.nonfinite = (
            optimizer_step.optimizer,
            optimizer_step.scaler,
            optimizer_step.nonfinite,
        )
        self.means = means
        self.loader = loader
        self.data = loader.dataset.fingerprint if world.is_main else ""
        self.run_ids = run_ids(world)
        self.config = config
        self.world = world
        self.modules = {"backbone": unwrap_ddp(task.backbone), "header": unwrap_ddp(task.header)}

    def state_dict(self, progress: TrainProgress) -> dict[str, Any] | None:
        """A copy of all, on the CPU, for the main process; None for the others, which take part."""
        ranks: list[Any] | None = [None] * self.world.size if self.world.is_main else None
        mine = snapshot(self._of_this_process())
        if self.world.size > 1:
            dist.gather_object(mine, ranks)
        else:
            ranks = [mine]
        weights = {
            name: gather_full_state_dict(module, dict(module.state_dict()), self.world)
            for name, module in self.modules.items()
        }
        momentum = {
            name: gather_full_state_dict(module, self._momentum(module), self.world)
            for name, module in self.modules.items()
        }
        if not self.world.is_main:
            return None
        return {
            "version": VERSION,
            "way": type(self.task).__name__,
            "run": self.run_ids,
            "position": {"step": progress.step, "ends": progress.epoch_end_steps.save(), "seen": progress.samples_seen},
            "images": self.loader.sampler.n_images,
            "data": self.data,
            "config": config_values(self.config),
            **weights,
            "momentum": momentum,
            "scaler": self.scaler.state_dict(),
            "bad_steps": self.nonfinite.total,
            "task": snapshot(self.task.state_dict()),
            "ranks": ranks,
        }

    def load_state_dict(self, resume_point: ResumePoint) -> None:
        """Goes on from the start, if it has something to go on from. Raises UserError where that does not fit."""
        if resume_point.published:
            self._load_published(resume_point)
        elif resume_point.state:
            run_on_all(self.world, lambda: self._load(resume_point.state))
        header = self.modules["header"]
        if isinstance(header, ShardedArcFace):
            if resume_point.published or resume_point.state:
                self._load_shards(header, resume_point)
            header.set_step(resume_point.progress.step)  # by which it draws the classes that take part
        if resume_point.state:
            resume_point.state.clear()  # as large as all weights and momentum

    def _load_published(self, resume_point: ResumePoint) -> None:
        """The main process reads the files, which other machines need not have."""
        for name, module in self.task.exported_modules(resume_point.progress.step).items():
            if not isinstance(module, ShardedArcFace):
                path = Path(resume_point.published or "", name)
                run_on_main(self.world, partial(load_weights, module, path))
                broadcast_(module.state_dict().values(), self.world)

    def _load(self, state: Any) -> None:
        where = f"{self.config.output}/{CHECKPOINT_FILE}"
        with as_checkpoint_error(where):
            self._load_parts(state, where)

    def _load_parts(self, state: Any, where: str) -> None:
        for name, module in self.modules.items():
            if not isinstance(module, ShardedArcFace):
                load_state(module, state[name], f"{where} ({name})")
                moments = self._momentum(module)
                check_state(moments, state["momentum"][name], f"{where} (momentum)")
                for parameter, momentum in moments.items():
                    momentum.copy_(state["momentum"][name][parameter])
        if state["scaler"]:  # else it ran without one
            self.scaler.load_state_dict(state["scaler"])
        self.nonfinite.total = int(state["bad_steps"])
        self.task.load_state_dict(state["task"])
        if self.world.rank < len(state["ranks"]):
            self._load_of_this_process(state["ranks"][self.world.rank])

    def _load_shards(self, header: ShardedArcFace, resume_point: ResumePoint) -> None:
        """Deals the columns, which the main process has, to all."""
        expected = {"kernel": torch.empty(len(header.kernel), header.n_classes, device="meta")}
        found: list[Tensor] = []  # kernel, momentum: not the result of `read`, which would go to all processes

        def take_kernel(weights: Any, where: str) -> None:
            check_state(expected, weights, where)
            found.append(weights["kernel"])

        def read() -> None:
            where = f"{self.config.output}/{CHECKPOINT_FILE}"
            if resume_point.published:
                path = resume_point.published / f"{resume_point.progress.step}header.pth"
                take_kernel(read_weights(path), str(path))
            elif resume_point.state:
                take_kernel(resume_point.state["header"], f"{where} (header)")
                take_kernel(resume_point.state["momentum"]["header"], f"{where} (momentum)")

        run_on_main(self.world, read)
        kernel, momentum = (*found, None, None)[:2]
        load_full(header, kernel)
        if resume_point.state:
            scatter_columns(momentum, self._momentum(header)["kernel"], header.n_classes, self.world)

    def _of_this_process(self) -> dict[str, Any]:
        cuda = self.world.device.type == "cuda"
        return {
            "buffers": {kind: torch.cat([b.flatten() for b in same]) for kind, same in self._buffers().items()},
            "random": torch.get_rng_state(),
            "cuda_random": torch.cuda.get_rng_state(self.world.device) if cuda else None,
            "means": self.means.state_dict(),
            "skipped": self.loader.skipped,
        }

    def _load_of_this_process(self, state: dict[str, Any]) -> None:
        for kind, same in self._buffers().items():
            if str(state["buffers"][kind].dtype) != kind:
                raise ValueError(f"running statistics of {state['buffers'][kind].dtype}, not {kind}")
            parts = state["buffers"][kind].split([buffer.numel() for buffer in same])
            for buffer, part in zip(same, parts, strict=True):
                buffer.copy_(part.view_as(buffer))
        torch.set_rng_state(state["random"])
        if self.world.device.type == "cuda" and state["cuda_random"] is not None:
            torch.cuda.set_rng_state(state["cuda_random"], self.world.device)
        self.means.load_state_dict(state["means"])
        self.loader.skipped = int(state["skipped"])

    def _buffers(self) -> dict[str, list[Tensor]]:
        """Running statistics by their type: a file holds few large tensors of many processes, not many small ones."""
        kinds: dict[str, list[Tensor]] = {}
        for buffer in self.modules["backbone"].buffers():
            kinds.setdefault(str(buffer.dtype), []).append(buffer)
        return kinds

    def _momentum(self, module: nn.Module) -> dict[str, Tensor]:
        """By the parameter's name. Written in place: a loaded tensor would not have the parameter's memory format."""
        known = {id(parameter) for group in self.optimizer.param_groups for parameter in group["params"]}
        return {
            name: self.optimizer.state[parameter]["momentum_buffer"]
            for name, parameter in module.named_parameters()
            if id(parameter) in known
        }
