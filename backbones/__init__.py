"""Backbones. `build_backbone` builds the network that a config names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backbones.names import resolve_network_name
from utils.registry import BACKBONES, load_entry

if TYPE_CHECKING:
    from torch import nn

    from config.base import Config


def build_backbone(config: Config) -> nn.Module:
    """Builds the randomly initialised network of config.net_name.

    It maps (B, 3, 112, 112) normalised images to (B, embedding_size). Raises UserError for an unknown name.
    """
    return load_entry(BACKBONES[resolve_network_name(config.net_name)].builder)(config)
