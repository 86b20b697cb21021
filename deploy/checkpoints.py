"""Opens the networks of checkpoints and of shared folders."""

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

from backbones.build import build_backbone
from config import Config, load_config, shipped_configs
from config.saved import find_saved_config
from utils.checkpoints.state_dicts import CheckpointError, check_state_dict
from utils.checkpoints.weights import find_backbones, read_weights
from utils.filesystem import open_regular_file, path_exists

SAFETENSORS_FILE = "model.safetensors"


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
            return _load(find_weights(path, "config output"), config)
    file = find_weights(path, "--model")
    if config_path is None and (saved := find_saved_config(file)):
        config_path = str(saved)
    return _load(file, load_config(config_path, overrides) if config_path else None, overrides)


def find_weights(path: str, option: str) -> Path:
    """Returns the file of weights that a path stands for. Raises CheckpointError."""
    shared = Path(path, SAFETENSORS_FILE)
    if path_exists(shared.is_file):
        return shared
    if Path(path).suffix == ".safetensors" and path_exists(Path(path).is_file):
        return Path(path)
    return list(find_backbones(path, option).values())[-1]


def _load(file: Path, config: Config | None, overrides: Sequence[str] = ()) -> tuple[nn.Module, Config, Path]:
    weights = read_safetensors(file) if file.suffix == ".safetensors" else read_weights(file)
    config = config or match_config(weights, file, overrides)
    with torch.device("meta"):  # config.json may name a network that the memory does not hold
        check_state_dict(build_backbone(config).state_dict(), weights, str(file))
    backbone = build_backbone(config)
    backbone.load_state_dict(weights)
    return backbone.eval(), config, file


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Returns the tensors of a .safetensors file by name. Raises CheckpointError."""
    try:
        with open_regular_file(path) as file:
            return load_safetensors(file.read())
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from None
    except (SafetensorError, KeyError) as error:  # KeyError: a type of numbers that it cannot read
        raise CheckpointError(f"{path}: is not a readable safetensors file ({error!s:.80})") from None


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
