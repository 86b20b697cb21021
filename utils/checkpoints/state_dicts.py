"""State dicts as people bring them: what of a file is the network's, and whether it fits the network of the config."""

import math
from typing import Any

import torch
from torch import Tensor

from utils.errors import UserError
from utils.logs.run_log import log

NETWORK_FIELDS = "net_name, channel, n_layers, genotype"  # of the config, which decide on the network
HEADER_FIELDS = "num_classes and rec"  # of the config, which decide on the classes of a header
_WRAPPERS = ("module.", "_orig_mod.")  # put before every key by DataParallel and by torch.compile


class CheckpointError(UserError):
    """A checkpoint that cannot be read, or is of another network."""


def take_state_dict(content: object, where: str) -> dict[str, Tensor]:
    """The tensors of a network by their names, out of the content of a file.

    Of a dict with other values, as {"state_dict": …, "epoch": …}, takes the one state dict in it and says so. Removes
    from all names what DataParallel and torch.compile put before them. Raises CheckpointError; `where` names the file.
    """
    if isinstance(content, dict) and not _is_state_dict(content):
        inside = [key for key, value in content.items() if _is_state_dict(value) and value]
        if len(inside) > 1:
            names = ", ".join(map(_shown, inside))
            raise CheckpointError(
                f"{where}: holds {len(inside)} state dicts ({names:.80}); save the network's in a file of its own"
            )
        if inside:
            log.info(f"{where}: takes the state dict that it holds as {_shown(inside[0])}")
            content = content[inside[0]]
    weights = _require_tensors(content, where)
    while prefix := next((p for p in _WRAPPERS if weights and all(key.startswith(p) for key in weights)), ""):
        weights = {key.removeprefix(prefix): value for key, value in weights.items()}
    return weights


def _is_state_dict(value: object) -> bool:
    return isinstance(value, dict) and all(type(k) is str and isinstance(v, Tensor) for k, v in value.items())


def _require_tensors(weights: object, where: str) -> dict[str, Tensor]:
    if not isinstance(weights, dict):
        raise CheckpointError(f"{where}: should hold a state dict of tensors, not a {type(weights).__name__}")
    for key, value in weights.items():
        if type(key) is not str or not isinstance(value, Tensor):
            pair = f"{_shown(key)}: {type(value).__name__}"
            raise CheckpointError(f"{where}: should hold a state dict of tensors by their names, but has {pair}")
    return dict(weights)


def is_finite(value: Tensor, dtype: torch.dtype | None = None) -> bool:
    """Whether all numbers of a tensor are finite, also as another type if one is given. Makes no copy of it."""
    if not value.is_floating_point() or not value.numel():
        return True
    most = torch.finfo(dtype or value.dtype).max
    lowest, highest = map(float, value.detach().aminmax())
    return -most <= lowest <= highest <= most  # False of NaN


def first_not_finite(content: Any, name: str = "") -> str | None:
    """The first tensor or number, in nested dicts and lists, that is not finite: its keys joined by slashes."""
    if isinstance(content, Tensor):
        return None if is_finite(content) else name
    if isinstance(content, dict | list | tuple):
        parts = content.items() if isinstance(content, dict) else enumerate(content)
        found = (first_not_finite(value, f"{name}/{_shown(key)}" if name else _shown(key)) for key, value in parts)
        return next(filter(None, found), None)
    return name if isinstance(content, float) and not math.isfinite(content) else None


def check_state(expected: dict[str, Tensor], weights: Any, where: str, fields: str = NETWORK_FIELDS) -> None:
    """Raises CheckpointError unless the weights are finite and have the names, shapes and kinds of numbers of those
    expected, which may be on the meta device."""
    _require_tensors(weights, where)
    if list(expected) == ["kernel"]:
        fields = HEADER_FIELDS
    missing = [key for key in expected if key not in weights]
    unknown = [key for key in weights if key not in expected]
    if missing or unknown:
        has, lacks = _first(unknown, weights), _first(missing, expected)
        raise CheckpointError(f"{where}: is of another network: it has {has} and lacks {lacks}; check {fields}")
    for key, value in weights.items():
        if value.shape != expected[key].shape:
            raise CheckpointError(
                f"{where}: {_shown(key)} is {_shape(value)} there and {_shape(expected[key])} by the config; "
                f"check {_fields_of_shapes(expected, weights, fields)}"
            )
    for key, value in weights.items():
        dtype = expected[key].dtype
        if (value.is_floating_point(), value.dtype is torch.bool) != (dtype.is_floating_point, dtype is torch.bool):
            raise CheckpointError(
                f"{where}: {_shown(key)} is of {value.dtype} there and of {dtype} by the network; save the network's "
                "state dict again"
            )
        if not is_finite(value, dtype):
            raise CheckpointError(f"{where}: {_shown(key)} is not finite: its training failed; name another file")


def _fields_of_shapes(expected: dict[str, Tensor], weights: dict[str, Tensor], fields: str) -> str:
    """The config's fields that decide on the shapes that differ."""
    differ = [(key, value.shape, expected[key].shape) for key, value in weights.items()]
    differ = [(key, there, here) for key, there, here in differ if there != here]
    if list(expected) == ["kernel"]:  # (embedding_size, num_classes)
        _, there, here = differ[0]
        if there[:1] == here[:1]:
            return fields
        return "embedding_size" if there[1:] == here[1:] else f"{fields}, embedding_size"
    # The embedding's size is the length of the last layers; a channel's number is in all layers, in several multiples.
    lengths = {(there[:1], here[:1]) for _, there, here in differ}
    if len(lengths) == 1 and all(there[1:] == here[1:] for _, there, here in differ):
        return "embedding_size"
    return f"{fields}, embedding_size"


def _first(keys: list[str], weights: dict[str, Tensor]) -> str:
    """The first key and its shape, in words."""
    if not keys:
        return "nothing else"
    more = f" (and {len(keys) - 1} more)" if len(keys) > 1 else ""
    return f"{_shown(keys[0])} {_shape(weights[keys[0]])}{more}"


def _shape(tensor: Tensor) -> str:
    """A shape in a message, however many dimensions the file gives it."""
    return f"{tuple(tensor.shape)!s:.80}"


def _shown(key: object) -> str:
    """A key in a message, in one line whatever the file holds."""
    return key if isinstance(key, str) and key.isprintable() and len(key) <= 100 else f"{key!a:.100}"
