"""Initial weights of a run, named by student_pth, student_global_step and student_header in the config."""

from pathlib import Path

from torch import nn

from config.base import Config
from utils.checkpoints.weights import NETWORK_FIELDS, load_weights
from utils.distributed.collectives import run_on_all
from utils.distributed.data_parallel import unwrap_ddp
from utils.distributed.process_group import World
from utils.errors import UserError, shorten
from utils.filesystem import exists_as_non_folder, is_in_folder
from utils.logs.logger import log
from utils.training.initial_header import load_header


def check_student(config: Config) -> None:
    """Raises UserError if freeze has no trained weights to keep, or if student_pth is in config.output.

    The run would archive the files there, as those of an earlier run.
    """
    if config.freeze and not config.student_pth and config.resume != "1":
        raise UserError(
            f"config freeze: {shorten(config.freeze)} would keep random weights",
            fix="name trained ones: student_pth=FILE",
        )
    if config.student_pth and is_in_folder(Path(config.student_pth), Path(config.output)):
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
        fix = "train with a new one: student_header=False, or check rec and num_classes"
        load_header(unwrap_ddp(header), path.with_name(f"{step}header.pth"), world, fix)
    return path
