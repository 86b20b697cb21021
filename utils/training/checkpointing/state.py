"""Training state of a run: everything that changes while it trains, copied for a checkpoint and restored from it."""

from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from config.base import Config
from utils.checkpoints.run_file import CHECKPOINT_FILE, FORMAT_VERSION
from utils.checkpoints.snapshot import cpu_snapshot
from utils.checkpoints.state_dicts import check_state_dict
from utils.checkpoints.weights import (
    as_checkpoint_error,
    load_checked_state_dict,
    load_weights,
    read_weights,
)
from utils.datasets.shared_loader import SharedMemoryLoader
from utils.distributed.collectives import broadcast_, run_on_all, run_on_main
from utils.distributed.data_parallel import unwrap_ddp
from utils.distributed.process_group import World
from utils.distributed.restart import run_ids
from utils.logs.meters import MeanMeter
from utils.losses.column_shards import gather_columns, scatter_columns
from utils.losses.partial_fc import ShardedHeader, load_full_state_dict
from utils.training.checkpointing.progress import TrainProgress
from utils.training.checkpointing.resume import ResumePoint, config_values
from utils.training.optimizer_step import OptimizerStep
from utils.training.optimizers import fill_optimizer_state
from utils.training.task import Task


def gather_full_state_dict(module: nn.Module, tensors: dict[str, Tensor], world: World) -> dict[str, Tensor] | None:
    """Returns a full CPU copy of a module's named tensors on rank 0, None elsewhere; gathers a sharded header.

    Collective: call on all ranks. tensors: the module's state dict, or optimizer state of its parameters. Of a sharded
    header everything but tensors of the kernel's shape is the same on all ranks.
    """
    if not isinstance(module, ShardedHeader):
        return cpu_snapshot(tensors) if world.is_main else None
    full = {
        name: gather_columns(value, module.n_classes, module.world) if name == "kernel" and value.ndim else value
        for name, value in tensors.items()
    }
    return cpu_snapshot(full) if world.is_main else None


class TrainingState:
    """Weights, optimizer, loss scaler and task state; and of each rank its running statistics, RNGs and loss sums."""

    def __init__(
        self,
        task: Task,
        optimizer_step: OptimizerStep,
        means: MeanMeter,
        loader: SharedMemoryLoader,
        config: Config,
        world: World,
    ) -> None:
        """Holds references to the objects whose state it saves and restores. Collective: call on all ranks."""
        self.task = task
        self.optimizer = optimizer_step.optimizer
        self.scaler = optimizer_step.scaler
        self.nonfinite = optimizer_step.nonfinite
        self.means = means
        self.loader = loader
        self.fingerprint = loader.dataset.fingerprint if world.is_main else ""
        self.run_ids = run_ids(world)
        self.config = config
        self.world = world
        self.modules = {"backbone": unwrap_ddp(task.backbone), "header": unwrap_ddp(task.header)}

    def state_dict(self, progress: TrainProgress) -> dict[str, Any] | None:
        """Returns a CPU copy of the state for checkpoint.pth on rank 0, None elsewhere.

        Collective: call on all ranks.
        """
        ranks: list[Any] | None = [None] * self.world.size if self.world.is_main else None
        rank_state = cpu_snapshot(self._rank_state_dict())
        if self.world.size > 1:
            dist.gather_object(rank_state, ranks)
        else:
            ranks = [rank_state]
        weights = {
            name: gather_full_state_dict(module, dict(module.state_dict()), self.world)
            for name, module in self.modules.items()
        }
        optimizer = {
            name: {
                key: gather_full_state_dict(module, buffers, self.world)
                for key, buffers in self._optimizer_buffers(module).items()
            }
            for name, module in self.modules.items()
        }
        if not self.world.is_main:
            return None
        return {
            "version": FORMAT_VERSION,
            "way": type(self.task).__name__,
            "run": self.run_ids,
            "position": {
                "step": progress.step,
                "ends": progress.epoch_end_steps.to_list(),
                "seen": progress.samples_seen,
            },
            "images": self.loader.sampler.n_images,
            "data": self.fingerprint,
            "config": config_values(self.config),
            **weights,
            "optimizer": optimizer,
            "scaler": self.scaler.state_dict(),
            "bad_steps": self.nonfinite.total,
            "task": cpu_snapshot(self.task.state_dict()),
            "ranks": ranks,
        }

    def load_state_dict(self, resume_point: ResumePoint) -> None:
        """Restores the state or the exported weights of the resume point, if it has either, and frees its memory.

        Collective: call on all ranks. Raises UserError if they do not fit this run.
        """
        if resume_point.state:
            fill_optimizer_state(self.optimizer)
            run_on_all(self.world, partial(self._drop_unsaved_state, resume_point.state))
        if resume_point.export_folder:
            self._load_exported_weights(resume_point)
        elif resume_point.state:
            run_on_all(self.world, lambda: self._load_checkpoint(resume_point.state))
        header = self.modules["header"]
        if isinstance(header, ShardedHeader):
            if resume_point.export_folder or resume_point.state:
                self._scatter_header(header, resume_point)
            header.set_step(resume_point.progress.step)  # seeds its class sampling
        if resume_point.state:
            resume_point.state.clear()  # as large as all weights and the optimizer state together

    def _drop_unsaved_state(self, state: Any) -> None:
        """Removes the optimizer state of parameters that have none in the checkpoint: no step has changed them yet."""
        where = f"{self.config.output}/{CHECKPOINT_FILE}"
        for name, module in self.modules.items():
            if isinstance(module, ShardedHeader):
                continue  # only rank 0 has its entries; every step changes it
            with as_checkpoint_error(where):
                saved = {parameter for named in state["optimizer"][name].values() for parameter in named}
            for parameter_name, parameter in module.named_parameters():
                if parameter_name not in saved:
                    self.optimizer.state.pop(parameter, None)

    def _load_exported_weights(self, resume_point: ResumePoint) -> None:
        """Reads the exported weights on rank 0 and broadcasts them; other machines need not have the files."""
        for name, module in self.task.exported_modules(resume_point.progress.step).items():
            if not isinstance(module, ShardedHeader):
                path = Path(resume_point.export_folder or "", name)
                run_on_main(self.world, partial(load_weights, module, path))
                broadcast_(module.state_dict().values(), self.world)

    def _load_checkpoint(self, state: Any) -> None:
        """Restores everything but a sharded header from the content of checkpoint.pth. Not collective."""
        where = f"{self.config.output}/{CHECKPOINT_FILE}"
        with as_checkpoint_error(where):
            self._load_entries(state, where)

    def _load_entries(self, state: Any, where: str) -> None:
        """Restores the entries one after another. where: path of the file, for error messages."""
        for name, module in self.modules.items():
            if not isinstance(module, ShardedHeader):
                load_checked_state_dict(module, state[name], f"{where} ({name})")
                for key, buffers in self._optimizer_buffers(module).items():
                    saved = state["optimizer"][name][key]
                    check_state_dict(buffers, saved, f"{where} ({key})")
                    for parameter, buffer in buffers.items():
                        buffer.copy_(saved[parameter])
        if state["scaler"]:  # empty if the run did not train in fp16
            self.scaler.load_state_dict(state["scaler"])
        self.nonfinite.total = int(state["bad_steps"])
        self.task.load_state_dict(state["task"])
        if self.world.rank < len(state["ranks"]):
            self._load_rank_state_dict(state["ranks"][self.world.rank])

    def _scatter_header(self, header: ShardedHeader, resume_point: ResumePoint) -> None:
        """Sends rank 0's full kernel, the margin's state and the optimizer state of a checkpoint to all ranks."""
        full_shape = {"kernel": torch.empty(len(header.kernel), header.n_classes, device="meta")}
        full: dict[str, Tensor] = {}  # by key, on rank 0; not returned by `read`, which would broadcast them
        buffers = {key: named["kernel"] for key, named in self._optimizer_buffers(header).items()}
        margin = {f"margin.{name}": value for name, value in header.margin.state_dict().items()}

        def take_optimizer(key: str, saved: Any, where: str) -> None:
            check_state_dict(full_shape if buffers[key].ndim else {"kernel": buffers[key]}, saved, where)
            full[key] = saved["kernel"]

        def take_weights(saved: Any, where: str) -> None:
            check_state_dict({**full_shape, **margin}, saved, where)
            full["kernel"] = saved["kernel"]
            for name, value in margin.items():
                value.copy_(saved[name])

        def read() -> None:
            where = f"{self.config.output}/{CHECKPOINT_FILE}"
            if resume_point.export_folder:
                path = resume_point.export_folder / f"{resume_point.progress.step}header.pth"
                take_weights(read_weights(path), str(path))
            elif resume_point.state:
                take_weights(resume_point.state["header"], f"{where} (header)")
                for key in buffers:
                    take_optimizer(key, resume_point.state["optimizer"]["header"][key], f"{where} ({key})")

        run_on_main(self.world, read)
        load_full_state_dict(header, full.get("kernel"))
        broadcast_(margin.values(), self.world)
        if resume_point.state:
            for key, buffer in buffers.items():
                if buffer.ndim:
                    scatter_columns(full.get(key), buffer, header.n_classes, self.world)
                else:
                    if key in full:
                        buffer.copy_(full[key])
                    broadcast_([buffer], self.world)

    def _rank_state_dict(self) -> dict[str, Any]:
        """Returns the state that differs between ranks."""
        cuda = self.world.device.type == "cuda"
        return {
            "buffers": {dtype: torch.cat([b.flatten() for b in bs]) for dtype, bs in self._buffers_by_dtype().items()},
            "random": torch.get_rng_state(),
            "cuda_random": torch.cuda.get_rng_state(self.world.device) if cuda else None,
            "means": self.means.state_dict(),
            "skipped": self.loader.skipped,
        }

    def _load_rank_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the state of this rank. Raises ValueError if running statistics have another dtype or size."""
        for dtype, buffers in self._buffers_by_dtype().items():
            if str(state["buffers"][dtype].dtype) != dtype:
                raise ValueError(f"running statistics of {state['buffers'][dtype].dtype}, not {dtype}")
            parts = state["buffers"][dtype].split([buffer.numel() for buffer in buffers])
            for buffer, part in zip(buffers, parts, strict=True):
                buffer.copy_(part.view_as(buffer))
        torch.set_rng_state(state["random"])
        if self.world.device.type == "cuda" and state["cuda_random"] is not None:
            torch.cuda.set_rng_state(state["cuda_random"], self.world.device)
        self.means.load_state_dict(state["means"])
        self.loader.skipped = int(state["skipped"])

    def _buffers_by_dtype(self) -> dict[str, list[Tensor]]:
        """Groups all buffers by dtype, so that a file holds a few large tensors per rank, not many small."""
        groups: dict[str, list[Tensor]] = {}
        for buffer in chain.from_iterable(module.buffers() for module in self.modules.values()):
            groups.setdefault(str(buffer.dtype), []).append(buffer)
        return groups

    def _optimizer_buffers(self, module: nn.Module) -> dict[str, dict[str, Tensor]]:
        """Returns the optimizer state of a module's parameters: tensors by key, then by parameter name.

        They are restored in place, because a loaded tensor would not have the parameter's memory format.
        """
        buffers: dict[str, dict[str, Tensor]] = {}
        for name, parameter in module.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                buffers.setdefault(key, {})[name] = value
        return buffers
