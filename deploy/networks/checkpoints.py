"""Opens the networks of checkpoints and of shared folders."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from backbones.build import build_backbone
from config import Config, load_config, shipped_configs
from config.saved import find_saved_config
from deploy.networks.exported import RUNTIMES
from utils.checkpoints.state_dicts import CheckpointError, check_state_dict
from utils.checkpoints.weights import find_backbones, read_weights


def open_checkpoint(
    path: str | None, config_path: str | None, overrides: Sequence[str] = ()
) -> tuple[nn.Module, Config, Path]:
    """Returns the network, in evaluation mode on the CPU, its config and the file of its weights.

    Args:
        path: a checkpoint, the folder of a run, whose last checkpoint is taken, or a shared folder. None: config.output
            of config/config.py.
        config_path: the config. None: config.json beside the weights, or else the shipped config whose network has the
            shapes of the weights.
        overrides: of config fields, "field=value".

    Raises UserError.
    """
    if path is None:
        config = load_config(config_path, overrides)
        path, config_path = config.output, config_path or str(find_saved_config(config.output) or "") or None
        if config_path is None:
            return _load(_find_weights(path, "config output"), config)
    file = _find_weights(path, "--model")
    if config_path is None and (saved := find_saved_config(file)):
        config_path = str(saved)
    return _load(file, load_config(config_path, overrides) if config_path else None, overrides)


def _find_weights(path: str, option: str) -> Path:
    """Returns the file of weights that a path stands for; of several checkpoints the last. Raises CheckpointError."""
    if Path(path).suffix in RUNTIMES:
        raise CheckpointError(
            f"{option} {path}: is an exported file", fix="name the checkpoint that it was exported from"
        )
    return list(find_backbones(path, option).values())[-1]


def _load(file: Path, config: Config | None, overrides: Sequence[str] = ()) -> tuple[nn.Module, Config, Path]:
    weights = read_weights(file)
    config = config or match_config(weights, file, overrides)
    with torch.device("meta"):  # config.json may name a network that the memory does not hold
        check_state_dict(build_backbone(config).state_dict(), weights, str(file))
    backbone = build_backbone(config)
    backbone.load_state_dict(weights)
    return backbone.eval(), config, file


def match_config(weights: dict[str, Tensor], file: Path, overrides: Sequence[str] = ()) -> Config:
    """Returns the shipped config whose network has the names and shapes of the weights. Raises UserError."""
    shapes = {name: value.shape for name, value in weights.items()}
    for path in shipped_configs():
        config = load_config(path, overrides)
        with torch.device("meta"):
            expected = build_backbone(config).state_dict()
        if shapes == {name: value.shape for name, value in expected.items()}:
            return config
    raise CheckpointError(
        f"{file}: has no config.json beside it, and no shipped config fits", fix="name its config with --config FILE"
    )
