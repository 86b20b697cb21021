"""Backbones. `build_backbone` builds the network that a config names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from backbones.genotypes import parse_genotype
from backbones.names import parse_network_name

if TYPE_CHECKING:
    from torch import nn


def build_backbone(config: Mapping[str, Any], net_name: str | None = None) -> nn.Module:
    """Builds a randomly initialised backbone, which maps (B, 3, 112, 112) normalised images to (B, embedding_size).

    Raises UserError for an unknown name.

    Args:
        config: a PocketNet is built from its channel, n_layers, stem_multiplier, genotype and embedding_size, an
            IResNet from its embedding_size.
        net_name: one of the names in backbones.names. None: the config's net_name.
    """
    # Imported here, because configs import this package for its genotypes, and loading a config must not need torch.
    from backbones.augment_cnn import PocketNet
    from backbones.iresnet import IResNet

    if depth := parse_network_name(net_name or config["net_name"]).depth:
        return IResNet(depth, config["embedding_size"])
    return PocketNet(
        config["channel"],
        config["n_layers"],
        parse_genotype(config["genotypes"][config["genotype"]]),
        stem_multiplier=config["stem_multiplier"],
        emb=config["embedding_size"],
    )
