"""Builds the network that a config names."""

from torch import nn

from backbones.names import resolve_network_name
from config.base import Config
from utils.registry import BACKBONES, load_entry


def build_backbone(config: Config) -> nn.Module:
    """Builds the randomly initialised network of config.net_name.

    It maps (B, 3, 112, 112) normalised images to (B, embedding_size). Raises UserError for an unknown name.
    """
    return load_entry(BACKBONES[resolve_network_name(config.net_name)].builder)(config)
