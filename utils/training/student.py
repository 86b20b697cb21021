"""Weights that a run starts from: student_pth, student_global_step and student_header of the config."""

from pathlib import Path

import torch
from easydict import EasyDict
from torch import Tensor, nn

from utils.checkpoints.weights import NETWORK_FIELDS, load_weights, read_weights
from utils.distributed.collectives import run_on_all, run_on_main
from utils.distributed.process_group import World, unwrap_ddp
from utils.errors import UserError
from utils.filesystem import is_no_folder
from utils.logs.run_log import log
from utils.losses.partial_fc import ShardedArcFace, load_full


def check_student(config: EasyDict) -> None:
    """Raises UserError where the run would set aside, as files of an earlier run, the weights that it starts from."""
    path = Path(config.student_pth)
    folder = path.parent if is_no_folder(path) else path
    if config.student_pth and folder.resolve() == Path(config.output).resolve():
        raise UserError(
            f"config student_pth: {config.student_pth!r} is in the output folder; to go on from a step there use "
            "--resume 1 global_step=STEP, to train anew from its weights name another output"
        )


def load_student(config: EasyDict, backbone: nn.Module, header: nn.Module, world: World) -> None:
    """Loads the weights that the config names, and logs which; see `load_student_files`."""
    path = load_student_files(config, backbone, header if config.student_header else None, world)
    log.info(f"Starts from the weights in {path}, with {'their' if config.student_header else 'a new'} header")


def load_student_files(config: EasyDict, backbone: nn.Module, header: nn.Module | None, world: World) -> Path:
    """Loads {student_global_step}backbone.pth into the backbone, and into a header its file; returns the backbone's.

    Collective: call on all ranks. Raises UserError where a file is missing or of another network, or where the header
    has another number of classes.
    """
    folder, step = Path(config.student_pth), config.student_global_step
    path = folder if is_no_folder(folder) else folder / f"{step}backbone.pth"
    run_on_all(world, lambda: load_weights(backbone, path, f"student_pth, student_global_step, {NETWORK_FIELDS}"))
    if header is not None:
        _load_header(unwrap_ddp(header), path.with_name(f"{step}header.pth"), world)
    return path


def _load_header(header: nn.Module, path: Path, world: World) -> None:
    """Loads a header's file, its shape checked first: another number of classes is the likely mistake."""
    own = header.get_parameter("kernel")
    rows, classes = own.shape
    if isinstance(header, ShardedArcFace):
        classes = header.n_classes
    found: list[Tensor] = []  # on the main process; the others may not have the file

    def read() -> None:
        kernel = read_weights(path).get("kernel", torch.empty(0))
        if kernel.shape != (rows, classes):
            raise UserError(
                f"{path}: its header is {tuple(kernel.shape)}, that of this run (embedding_size, classes) = "
                f"{(rows, classes)}; train with a new one: student_header=False, or check rec and num_classes"
            )
        found.append(kernel)

    if isinstance(header, ShardedArcFace):
        run_on_main(world, read)
        load_full(header, found[0] if found else None)
    else:
        run_on_all(world, read)
        with torch.no_grad():
            own.copy_(found[0])
