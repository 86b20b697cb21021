"""Checkpoints: {global_step}backbone.pth and {global_step}header.pth, state dicts with the published keys."""

import os
import pickle
import re
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from utils.checkpoints.safe_pickle import UnsupportedContent, check_file
from utils.checkpoints.state_dicts import NETWORK_FIELDS, CheckpointError, check_state, take_state_dict
from utils.errors import UserError, one_line
from utils.filesystem import open_regular_file, write_atomic

# What torch raises over a file that is no checkpoint, or half of one.
_DAMAGED = (
    pickle.UnpicklingError, ArithmeticError, AssertionError, AttributeError, EOFError, ImportError, LookupError,
    MemoryError, RuntimeError, TypeError, ValueError, struct.error, zipfile.BadZipFile,
)  # fmt: skip
_NO_BACKBONE = re.compile(r"\d*header\.pth|checkpoint(\..*)?\.pth|\..*")  # .pth files that hold other things


def snapshot(content: Any) -> Any:
    """A copy of nested dicts and lists whose tensors lie on the CPU and no longer change."""
    if isinstance(content, Tensor):
        # contiguous: files do not keep the memory format of the run that wrote them
        return content.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
    if isinstance(content, dict):
        return {key: snapshot(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [snapshot(value) for value in content]
    return content


def save_atomic(path: Path, content: Any) -> None:
    """Writes what torch.save writes, whole or not at all: a temporary file, then a rename. Both have reached the disk
    when this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)

    def write(file: BinaryIO) -> None:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())

    write_atomic(path, write)
    if hasattr(os, "O_DIRECTORY"):  # the rename is the folder's, and not every system opens folders
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def remove_stale_tempfiles(folder: str | Path) -> None:
    """Removes the temporary files of a process that was killed while writing."""
    for path in Path(folder).glob(".*.pth.*.tmp"):
        path.unlink(missing_ok=True)


def save_weights(path: str | Path, module: nn.Module) -> None:
    """Writes the module's state dict from the CPU, whole or not at all."""
    save_atomic(Path(path), snapshot(dict(module.state_dict())))


def list_backbones(folder: str | Path, field: str = "output") -> dict[int, Path]:
    """The folder's *backbone.pth files by step, ascending. Raises CheckpointError where there is none, or two of one
    step, naming the config's field that names the folder."""
    found: dict[int, Path] = {}
    for path in sorted(Path(folder).glob("*backbone.pth")):
        if not (match := re.fullmatch(r"(\d+)backbone\.pth", path.name)):
            continue
        other = found.setdefault(int(match[1]), path)
        if other != path:
            raise CheckpointError(
                f"config {field}: {other.name} and {path.name} in {str(folder)!r} are both of step {int(match[1])}; "
                "rename or remove one"
            )
    if not found:
        raise CheckpointError(
            f"config {field}: no {{global_step}}backbone.pth in {str(folder)!r}; train one or name another"
        )
    return dict(sorted(found.items()))


def find_backbones(prefix: str, option: str) -> dict[str, Path]:
    """Backbones by name: a file of any name, the file of a prefix (output/295672 for output/295672backbone.pth), or
    those of a folder: by step, ascending, or its only .pth file where no name has a step.

    Raises CheckpointError where there is none, or several files of other names to choose from, naming the option.
    """
    path = Path(prefix)
    field = option.removeprefix("config ") if option.startswith("config ") else f"output, or {option}"
    try:
        if path.is_dir():
            weights = [file for file in sorted(path.glob("*.pth")) if not _NO_BACKBONE.fullmatch(file.name)]
            if not weights or any(re.fullmatch(r"\d+backbone\.pth", file.name) for file in weights):
                return {str(step): file for step, file in list_backbones(path, field).items()}
            if len(weights) > 1:
                names = ", ".join(file.name for file in weights[:5]) + (", …" if len(weights) > 5 else "")
                raise CheckpointError(
                    f"config {field}: no {{global_step}}backbone.pth in {prefix!r}, but {len(weights)} "
                    f"other .pth files; name one of them: {names}"
                )
            return {backbone_name(weights[0]): weights[0]}
        for file in (path, path.with_name(path.name + "backbone.pth"), path.with_name(path.name + ".pth")):
            if file.exists() and not file.is_dir():  # a pipe as well: whoever reads it says what it is
                return {backbone_name(file): file}
    except OSError as error:  # no path can be that long, or it may not be looked at
        raise CheckpointError(f"{option} {prefix!r}: {error.strerror}") from None
    raise CheckpointError(f"{option} {prefix!r}: no such checkpoint, and no folder of checkpoints")


def backbone_name(path: Path) -> str:
    """The step of a {step}backbone.pth, else the file's name without .pth: what results are kept by."""
    name = path.name.removesuffix("backbone.pth").removesuffix(".pth") or path.name
    return str(int(name)) if re.fullmatch(r"\d+backbone\.pth", path.name) else one_line(name)


def load_safe(path: str | Path) -> Any:
    """What `save_atomic` wrote, on the CPU. The checksum of every part is right; only dense tensors of real numbers and
    plain values are unpickled, and nothing of it runs. Raises CheckpointError."""
    try:
        with open_regular_file(path) as file:
            check_file(file)
            file.seek(0)
            return torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such checkpoint") from None
    except OSError as error:
        raise CheckpointError(f"{path}: not a readable checkpoint ({error.strerror or error})") from None
    except UnsupportedContent as error:
        raise CheckpointError(f"{path}: {error}") from None
    except UserError as error:  # not a regular file
        raise CheckpointError(str(error)) from None
    except _DAMAGED as error:
        # Not in torch's words: over a file with code in it they advise to load it without the protection.
        raise CheckpointError(
            f"{path}: not a readable checkpoint: it is damaged, or holds more than tensors ({type(error).__name__})"
        ) from None


@contextmanager
def as_checkpoint_error(where: str | Path) -> Iterator[None]:
    """Makes CheckpointErrors of what is raised over content that is not as this version writes it."""
    try:
        yield
    except UserError:
        raise
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{where}: damaged, or of another version of the project ({type(error).__name__}: {error!s:.80})"
        ) from None


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The state dict of a file, on the CPU wherever it was saved, with the keys of the network itself. Raises
    CheckpointError."""
    return take_state_dict(load_safe(path), str(path))


def load_weights(module: nn.Module, path: str | Path, fields: str = NETWORK_FIELDS) -> None:
    """Loads a file into the module, every key and shape as it should be, or raises CheckpointError naming the first
    that is not, both shapes, and the config's fields to check."""
    load_state(module, read_weights(path), str(path), fields)


def load_state(module: nn.Module, weights: dict[str, Tensor], where: str, fields: str = NETWORK_FIELDS) -> None:
    """The same of weights that have been read; `where` names them in errors."""
    check_state(module.state_dict(), weights, where, fields)
    module.load_state_dict(weights)
