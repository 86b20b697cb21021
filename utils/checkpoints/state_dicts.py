"""Extracts a network's state dict from the content of a file, and checks that it fits the network of the config."""

import math
from typing import Any

import torch
from torch import Tensor

from utils.errors import UserError
from utils.logs.logger import log

NETWORK_FIELDS = "net_name, channel, n_layers, genotype"  # config fields that determine the network
HEADER_FIELDS = "num_classes and rec"  # config fields that determine the number of classes
MARGIN = "margin."  # key prefix of the margin's state in the state dict of a header
_WRAPPERS = ("module.", "_orig_mod.")  # key prefixes that DataParallel and torch.compile add


class CheckpointError(UserError):
    """A checkpoint that cannot be read, or belongs to another network."""


def extract_state_dict(content: object, source: str) -> dict[str, Tensor]:
    """Returns a network's tensors by name from the content of a file.

    From a dict with other values, such as {"state_dict": …, "epoch": …}, takes its only state dict and logs that.
    Removes the prefixes that DataParallel and torch.compile add to all names. Raises CheckpointError where there is no
    state dict, or more than one; `source` names the file in errors.
    """
    if isinstance(content, dict) and not _is_state_dict(content):
        nested = [key for key, value in content.items() if _is_state_dict(value) and value]
        if len(nested) > 1:
            names = ", ".join(map(_format_key, nested))
            raise CheckpointError(
                f"{source}: holds {len(nested)} state dicts ({names:.80})",
                fix="save the network's in a file of its own",
            )
        if nested:
            log.info(f"{source}: uses the state dict under its key {_format_key(nested[0])}")
            content = content[nested[0]]
    weights = _require_tensors(content, source)
    while prefix := next((p for p in _WRAPPERS if weights and all(key.startswith(p) for key in weights)), ""):
        weights = {key.removeprefix(prefix): value for key, value in weights.items()}
    return weights


def _is_state_dict(value: object) -> bool:
    return isinstance(value, dict) and all(type(k) is str and isinstance(v, Tensor) for k, v in value.items())


def _require_tensors(weights: object, source: str) -> dict[str, Tensor]:
    """Returns a copy of the dict. Raises CheckpointError unless it maps names to tensors."""
    if not isinstance(weights, dict):
        raise CheckpointError(f"{source}: should hold a state dict of tensors, not a {type(weights).__name__}")
    for key, value in weights.items():
        if type(key) is not str or not isinstance(value, Tensor):
            pair = f"{_format_key(key)}: {type(value).__name__}"
            raise CheckpointError(f"{source}: should hold a state dict of tensors by name, but has {pair}")
    return dict(weights)


def is_finite(value: Tensor, dtype: torch.dtype | None = None) -> bool:
    """Whether all numbers of a tensor are finite, also when converted to `dtype` if given. Does not copy the tensor."""
    if not value.is_floating_point() or not value.numel():
        return True
    limit = torch.finfo(dtype or value.dtype).max
    lowest, highest = map(float, value.detach().aminmax())
    return -limit <= lowest <= highest <= limit  # False for NaN


def first_nonfinite(content: Any, name: str = "") -> str | None:
    """Returns the path of the first tensor or number that is not finite in nested dicts and lists, None where all are.

    A path is the keys joined by slashes, below `name`.
    """
    if isinstance(content, Tensor):
        return None if is_finite(content) else name
    if isinstance(content, dict | list | tuple):
        parts = content.items() if isinstance(content, dict) else enumerate(content)
        prefix = f"{name}/" if name else ""
        paths = (first_nonfinite(value, prefix + _format_key(key)) for key, value in parts)
        return next(filter(None, paths), None)
    return name if isinstance(content, float) and not math.isfinite(content) else None


def check_state_dict(expected: dict[str, Tensor], weights: Any, source: str, fields: str = NETWORK_FIELDS) -> None:
    """Raises CheckpointError unless the weights are finite and have the names, shapes and dtype kinds of `expected`.

    Args:
        expected: the network's state dict; may be on the meta device.
        weights: the loaded state dict.
        source: names the file in errors.
        fields: config fields that the error advises to check.
    """
    _require_tensors(weights, source)
    if "kernel" in expected:
        fields = HEADER_FIELDS
    missing = [key for key in expected if key not in weights]
    unknown = [key for key in weights if key not in expected]
    if (missing or unknown) and all(key.startswith(MARGIN) for key in missing + unknown):
        raise CheckpointError(
            f"{source}: is the header of another loss: it has {_margin_keys(weights)}, this run's has "
            f"{_margin_keys(expected)}",
            fix="set loss as in the run that wrote it, or start a new run from its weights: student_pth=FILE",
        )
    if missing or unknown:
        has, lacks = _describe_first(unknown, weights), _describe_first(missing, expected)
        raise CheckpointError(
            f"{source}: belongs to another network: it has {has} and lacks {lacks}", fix=f"check {fields}"
        )
    for key, value in weights.items():
        if value.shape != expected[key].shape:
            raise CheckpointError(
                f"{source}: {_format_key(key)} has shape {_format_shape(value)}, but the config needs "
                f"{_format_shape(expected[key])}",
                fix=f"check {_fields_to_check(expected, weights, fields)}",
            )
    for key, value in weights.items():
        dtype = expected[key].dtype
        if (value.is_floating_point(), value.dtype is torch.bool) != (dtype.is_floating_point, dtype is torch.bool):
            raise CheckpointError(
                f"{source}: {_format_key(key)} is {value.dtype} in the file, but {dtype} in the network",
                fix="save the network's state dict again",
            )
        if not is_finite(value, dtype):
            raise CheckpointError(
                f"{source}: {_format_key(key)} is not finite: its training failed", fix="name another file"
            )


def _fields_to_check(expected: dict[str, Tensor], weights: dict[str, Tensor], fields: str) -> str:
    """Returns the config fields that determine the shapes that differ."""
    shapes = [(value.shape, expected[key].shape) for key, value in weights.items()]
    differing = [(found, needed) for found, needed in shapes if found != needed]
    if "kernel" in expected:  # a header: (embedding_size, num_classes)
        found, needed = differing[0]
        if found[:1] == needed[:1]:
            return fields
        return "embedding_size" if found[1:] == needed[1:] else f"{fields}, embedding_size"
    # embedding_size is the first dimension of the last layers; channel is in all layers, in several multiples.
    first_dimensions = {(found[:1], needed[:1]) for found, needed in differing}
    if len(first_dimensions) == 1 and all(found[1:] == needed[1:] for found, needed in differing):
        return "embedding_size"
    return f"{fields}, embedding_size"


def _describe_first(keys: list[str], weights: dict[str, Tensor]) -> str:
    """Returns the first key with its shape and the number of further keys, for an error message."""
    if not keys:
        return "nothing else"
    more = f" (and {len(keys) - 1} more)" if len(keys) > 1 else ""
    return f"{_format_key(keys[0])} {_format_shape(weights[keys[0]])}{more}"


def _margin_keys(weights: dict[str, Tensor]) -> str:
    """Returns the keys of the margin's state in that of a header, for an error message."""
    return ", ".join(_format_key(key) for key in weights if key.startswith(MARGIN))[:100] or f"no {MARGIN}*"


def _format_shape(tensor: Tensor) -> str:
    """Formats a shape for a message, cut to 80 characters however many dimensions it has."""
    return f"{tuple(tensor.shape)!s:.80}"


def _format_key(key: object) -> str:
    """Formats a key for a message, as one printable line whatever the file holds."""
    return key if isinstance(key, str) and key.isprintable() and len(key) <= 100 else f"{key!a:.100}"
