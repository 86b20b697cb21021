"""A header that starts from a file, such as the teacher's: header_from and header_frozen (ProxylessKD, 2011.00265)."""

import re
from pathlib import Path

import torch
from torch import Tensor, nn

from config.base import TEACHER, Config
from utils.checkpoints.state_dicts import is_finite
from utils.checkpoints.weights import list_backbones, read_weights
from utils.distributed.collectives import run_on_all, run_on_main
from utils.distributed.data_parallel import unwrap_ddp
from utils.distributed.process_group import World
from utils.errors import UserError, shorten
from utils.filesystem import exists_as_non_folder, is_in_folder
from utils.logs.logger import log
from utils.losses.partial_fc import ShardedHeader, load_full_state_dict


def check_initial_header(config: Config, distills: bool) -> None:
    """Raises UserError for values of header_from and header_frozen that do not fit the other fields or the command."""
    loads_students = bool(config.student_pth) and config.student_header
    if config.header_from == TEACHER and not distills:
        raise UserError(
            "config header_from: 'teacher', but this command has no teacher",
            fix="train with ./train_kd.sh, or name the file: header_from=FILE",
        )
    if config.header_from and loads_students:
        raise UserError(
            f"config header_from: {shorten(config.header_from)}, but student_header=True names another header",
            fix="set one of them",
        )
    is_file = config.header_from not in ("", TEACHER)
    if is_file and is_in_folder(Path(config.header_from), Path(config.output)):
        raise UserError(  # the run would archive it, as a file of an earlier run
            f"config header_from: {config.header_from!r} is in the output folder", fix="name another output"
        )
    if config.header_frozen and distills and config.distill == "adadistill":
        raise UserError("config header_frozen: distill=adadistill moves the class centres", fix="set one of them")
    if config.header_frozen and not (config.header_from or loads_students or config.resume == "1"):
        raise UserError(
            "config header_frozen: would keep random class centres", fix="name trained ones: header_from=FILE"
        )


def load_initial_header(config: Config, header: nn.Module, world: World) -> None:
    """Loads the file that config.header_from names and logs its path. Collective: call on all ranks.

    Raises UserError if there is no such file, or if it has other identities or another embedding size.
    """
    path = run_on_main(world, lambda: find_header_file(config))
    fix = "header_from needs the same identities and embedding_size: check rec, num_classes and embedding_size"
    load_header(unwrap_ddp(header), path, world, fix)
    log.info(f"Header: starts from {path}{', and stays as it is' if config.header_frozen else ''}")


def find_header_file(config: Config) -> Path:
    """Returns `header_file`. Raises UserError if there is no such file."""
    path = header_file(config)
    if not path.exists():
        fix = "name a {step}header.pth"
        if config.header_from == TEACHER:
            fix = "check teacher_pth and teacher_global_step, or name the file: header_from=FILE"
        raise UserError(f"config header_from: {path} does not exist", fix=fix)
    return path


def header_file(config: Config) -> Path:
    """Returns the file that config.header_from names.

    The teacher's is the {step}header.pth beside its backbone; in multi-step distillation that of its last checkpoint.
    Raises UserError if the teacher's file has no step in its name.
    """
    if config.header_from != TEACHER:
        return Path(config.header_from)
    path = Path(config.teacher_pth)
    if not exists_as_non_folder(path):
        steps = list_backbones(path, "teacher_pth") if config.multi_step else [config.teacher_global_step]
        return path / f"{max(steps)}header.pth"
    if not (match := re.fullmatch(r"(\d+)backbone\.pth", path.name)):
        raise UserError(
            f"config header_from: the teacher {path} is no {{step}}backbone.pth with a header beside it",
            fix="name the header's file: header_from=FILE",
        )
    return path.with_name(f"{match[1]}header.pth")


def load_header(header: nn.Module, path: Path, world: World, fix: str) -> None:
    """Loads the class centres of a header's file into a replicated or sharded header. Collective: call on all ranks.

    Raises UserError, with this fix, if the shape differs, which usually means another number of classes.
    """
    kernel = header.get_parameter("kernel")
    rows, classes = kernel.shape
    if isinstance(header, ShardedHeader):
        classes = header.n_classes
    loaded: list[Tensor] = []  # a sharded header is read on rank 0 only; other machines need not have the file

    def read() -> None:
        weights = read_weights(path)
        if "kernel" not in weights:
            raise UserError(f"{path}: has no class centres (kernel)", fix="name a {step}header.pth")
        saved = weights["kernel"]
        if saved.shape != (rows, classes):
            raise UserError(
                f"{path}: its header is {tuple(saved.shape)}, that of this run (embedding_size, classes) = "
                f"{(rows, classes)}",
                fix=fix,
            )
        if not is_finite(saved, kernel.dtype):
            raise UserError(f"{path}: kernel is not finite: its training failed", fix="name another file")
        loaded.append(saved)

    if isinstance(header, ShardedHeader):
        run_on_main(world, read)
        load_full_state_dict(header, loaded[0] if loaded else None)
    else:
        run_on_all(world, read)
        with torch.no_grad():
            kernel.copy_(loaded[0])
