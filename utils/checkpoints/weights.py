"""Saves, finds and loads {global_step}backbone.pth and {global_step}header.pth: state dicts with published keys.

Also reads .safetensors files, such as the one in a shared folder.
"""

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
from safetensors import SafetensorError
from safetensors.torch import load as parse_safetensors
from torch import Tensor, nn

from utils.checkpoints.safe_pickle import UnsupportedContent, check_file
from utils.checkpoints.snapshot import cpu_snapshot
from utils.checkpoints.state_dicts import NETWORK_FIELDS, CheckpointError, check_state_dict, extract_state_dict
from utils.errors import UserError, one_line
from utils.filesystem import open_regular_file, write_atomic

# Errors that torch raises for a file that is not a checkpoint, or a truncated one.
_DAMAGE_ERRORS = (
    pickle.UnpicklingError, ArithmeticError, AssertionError, AttributeError, EOFError, ImportError, LookupError,
    MemoryError, RuntimeError, SafetensorError, TypeError, ValueError, struct.error, zipfile.BadZipFile,
)  # fmt: skip
_NOT_A_BACKBONE = re.compile(r"\d*header\.pth|checkpoint(\..*)?\.pth|\..*")  # names of files without a backbone


def save_atomic(path: Path, content: Any) -> None:
    """Saves with torch.save, atomically: writes a temporary file, then renames it. Both are on the disk on return.

    Raises OSError, and RuntimeError from torch's writer.
    """
    path.parent.mkdir(parents=True, exist_ok=True)

    def write(file: BinaryIO) -> None:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())

    write_atomic(path, write)
    if hasattr(os, "O_DIRECTORY"):  # syncs the rename, on systems that can open folders
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def remove_stale_tempfiles(folder: str | Path) -> None:
    """Removes the temporary files of processes that were killed while writing."""
    for path in Path(folder).glob(".*.pth.*.tmp"):
        path.unlink(missing_ok=True)


def save_weights(path: str | Path, module: nn.Module) -> None:
    """Saves the module's state dict atomically, with all tensors on the CPU."""
    save_atomic(Path(path), cpu_snapshot(dict(module.state_dict())))


def list_backbones(folder: str | Path, field: str = "output") -> dict[int, Path]:
    """Returns the paths of a folder's {step}backbone.pth by step, ascending.

    Raises CheckpointError where there is none, or where two have the same step; `field` is the config field to name.
    """
    paths: dict[int, Path] = {}
    for path in sorted(Path(folder).glob("*backbone.pth")):
        if not (match := re.fullmatch(r"(\d+)backbone\.pth", path.name)):
            continue
        other = paths.setdefault(int(match[1]), path)
        if other != path:
            raise CheckpointError(
                f"config {field}: {other.name} and {path.name} in {str(folder)!r} are both of step {int(match[1])}",
                fix="rename or remove one",
            )
    if not paths:
        raise CheckpointError(
            f"config {field}: no {{global_step}}backbone.pth in {str(folder)!r}", fix="train one or name another"
        )
    return dict(sorted(paths.items()))


def find_backbones(prefix: str, option: str) -> dict[str, Path]:
    """Returns paths of backbones by name, for a file, a prefix or a folder.

    A file may have any name. A prefix such as output/295672 stands for output/295672backbone.pth. For a folder, returns
    all its {step}backbone.pth by step, ascending, or else its only other .pth or .safetensors file.

    Raises CheckpointError where there is none, or where the choice is ambiguous; `option` is the option to name.
    """
    path = Path(prefix)
    field = option.removeprefix("config ") if option.startswith("config ") else f"output, or {option}"
    try:
        if path.is_dir():
            files = [*sorted(path.glob("*.pth")), *sorted(path.glob("*.safetensors"))]
            weights = [file for file in files if not _NOT_A_BACKBONE.fullmatch(file.name)]
            if not weights or any(re.fullmatch(r"\d+backbone\.pth", file.name) for file in weights):
                return {str(step): file for step, file in list_backbones(path, field).items()}
            if len(weights) > 1:
                names = ", ".join(file.name for file in weights[:5]) + (", …" if len(weights) > 5 else "")
                raise CheckpointError(
                    f"config {field}: no {{global_step}}backbone.pth in {prefix!r}, but {len(weights)} "
                    "other files of weights",
                    fix=f"name one of them: {names}",
                )
            return {backbone_name(weights[0]): weights[0]}
        for file in (path, path.with_name(path.name + "backbone.pth"), path.with_name(path.name + ".pth")):
            if file.exists() and not file.is_dir():  # pipes too: reading one raises an error that says so
                return {backbone_name(file): file}
    except OSError as error:  # the path is too long or not accessible
        raise CheckpointError(f"{option} {prefix!r}: {error.strerror}") from None
    raise CheckpointError(f"{option} {prefix!r}: no such checkpoint, and no folder of checkpoints")


def backbone_name(path: Path) -> str:
    """Returns the step of a {step}backbone.pth, else the file's name without its suffix: the key of its results."""
    name = path.name.removesuffix("backbone.pth").removesuffix(".pth").removesuffix(".safetensors") or path.name
    return str(int(name)) if re.fullmatch(r"\d+backbone\.pth", path.name) else one_line(name)


def load_safe(path: str | Path) -> Any:
    """Loads a file that torch.save wrote, or a .safetensors file, with all tensors on the CPU.

    Verifies all checksums, where the format has any, unpickles only dense real tensors and plain values, and runs no
    code from the file. Raises CheckpointError.
    """
    try:
        with open_regular_file(path) as file:
            if Path(path).suffix == ".safetensors":
                return _load_safetensors(file.read())
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
    except _DAMAGE_ERRORS as error:
        # Not torch's message: for a file that holds code it advises to load it without the protection.
        raise CheckpointError(
            f"{path}: not a readable checkpoint: it is damaged, or holds more than tensors ({type(error).__name__})"
        ) from None


def _load_safetensors(content: bytes) -> dict[str, Tensor]:
    """Returns the tensors of a .safetensors file by name. Raises UnsupportedContent and safetensors' errors."""
    tensors = parse_safetensors(content)
    for name, value in tensors.items():
        if value.is_complex() or (value.is_floating_point() and value.element_size() < 2):
            raise UnsupportedContent(
                f"should hold only real tensors of at least 16 bits; {name!a:.80} is {value.dtype}"
            )
    return tensors


@contextmanager
def as_checkpoint_error(source: str | Path) -> Iterator[None]:
    """Translates errors about unexpected content into a CheckpointError that names `source`."""
    try:
        yield
    except UserError:
        raise
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{source}: damaged, or from another version of the project ({type(error).__name__}: {error!s:.80})"
        ) from None


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Returns the state dict of a file, with tensors on the CPU and keys without wrapper prefixes.

    Raises CheckpointError.
    """
    return extract_state_dict(load_safe(path), str(path))


def load_weights(module: nn.Module, path: str | Path, fields: str = NETWORK_FIELDS) -> None:
    """Loads a file into the module. Every key and shape must match.

    Raises CheckpointError naming the first that does not, both shapes, and the config `fields` to check.
    """
    load_checked_state_dict(module, read_weights(path), str(path), fields)


def load_checked_state_dict(
    module: nn.Module, weights: dict[str, Tensor], source: str, fields: str = NETWORK_FIELDS
) -> None:
    """Loads weights that have been read, with the checks of `load_weights`; `source` names them in errors."""
    check_state_dict(module.state_dict(), weights, source, fields)
    module.load_state_dict(weights)
