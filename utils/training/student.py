"""Initial weights of a run, named by student_pth, student_global_step and student_header in the config."""

from pathlib import Path

import torch
from torch import Tensor, nn

from config.base import Config
from utils.checkpoints.weights import NETWORK_FIELDS, load_weights, read_weights
from utils.distributed.collectives import run_on_all, run_on_main
from utils.distributed.data_parallel import unwrap_ddp
from utils.distributed.process_group import World
from utils.errors import UserError, shorten
from utils.filesystem import exists_as_non_folder
from utils.logs.logger import log
from utils.losses.partial_fc import ShardedHeader, load_full_state_dict


def check_student(config: Config) -> None:
    """Raises UserError if freeze has no trained weights to keep, or if student_pth is in config.output.

    The run would archive the files there, as those of an earlier run.
    """
    if config.freeze and not config.student_pth and config.resume != "1":
        raise UserError(
            f"config freeze: {shorten(config.freeze)} would keep random weights",
            fix="name trained ones: student_pth=FILE",
        )
    path = Path(config.student_pth)
    folder = path.parent if exists_as_non_folder(path) else path
    if config.student_pth and folder.resolve() == Path(config.output).resolve():
        raise UserError(
            f"config student_pth: {config.student_pth!r} is in the output folder",
            fix="to resume from a step there use "
            "--resume 1 global_step=STEP, to start a new run from its weights name another output",
        )


def load_student(config: Config, backbone: nn.Module, header: nn.Module, world: World) -> None:
    """Loads the initial weights that the config names and logs their path. Collective: call on all ranks.

    The header keeps its random initialisation unless config.student_header is set. Raises UserError as
    `load_student_files` does.
    """
    path = load_student_files(config, backbone, header if config.student_header else None, world)
    log.info(f"Starts from the weights in {path}, with {'their' if config.student_header else 'a new'} header")


def load_student_files(config: Config, backbone: nn.Module, header: nn.Module | None, world: World) -> Path:
    """Loads {student_global_step}backbone.pth, and the header's file if a header is given; returns the backbone path.

    Collective: call on all ranks. Raises UserError if a file is missing or belongs to another network, or if the header
    has another number of classes.
    """
    folder, step = Path(config.student_pth), config.student_global_step
    path = folder if exists_as_non_folder(folder) else folder / f"{step}backbone.pth"
    run_on_all(world, lambda: load_weights(backbone, path, f"student_pth, student_global_step, {NETWORK_FIELDS}"))
    if header is not None:
        _load_header(unwrap_ddp(header), path.with_name(f"{step}header.pth"), world)
    return path


def _load_header(header: nn.Module, path: Path, world: World) -> None:
    """Loads a header's file into a replicated or sharded header. Collective: call on all ranks.

    Raises UserError if the shape differs, which usually means another number of classes.
    """
    kernel = header.get_parameter("kernel")
    rows, classes = kernel.shape
    if isinstance(header, ShardedHeader):
        classes = header.n_classes
    loaded: list[Tensor] = []  # a sharded header is read on rank 0 only; other machines need not have the file

    def read() -> None:
        saved = read_weights(path).get("kernel", torch.empty(0))
        if saved.shape != (rows, classes):
            raise UserError(
                f"{path}: its header is {tuple(saved.shape)}, that of this run (embedding_size, classes) = "
                f"{(rows, classes)}",
                fix="train with a new one: student_header=False, or check rec and num_classes",
            )
        loaded.append(saved)

    if isinstance(header, ShardedHeader):
        run_on_main(world, read)
        load_full_state_dict(header, loaded[0] if loaded else None)
    else:
        run_on_all(world, read)
        with torch.no_grad():
            kernel.copy_(loaded[0])
