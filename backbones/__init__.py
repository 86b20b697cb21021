"""The networks: `build_backbone` makes the one a config names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from backbones.genotypes import parse
from backbones.names import parse_name

if TYPE_CHECKING:
    from torch import nn


def build_backbone(config: Mapping[str, Any], net_name: str | None = None) -> nn.Module:
    """A freshly initialised backbone: (B, 3, 112, 112) normalised images to (B, embedding_size).

    `net_name` (default: the config's) is an IResNet, or a PocketNet of the config's channel, n_layers and genotype;
    backbones.names lists the names. Raises UserError for any other.
    """
    # Imported here, not above: configs read genotypes from this package, and loading a config needs no torch.
    from backbones.augment_cnn import AugmentCNN
    from backbones.iresnet import IResNet

    if depth := parse_name(net_name or config["net_name"]).depth:
        return IResNet(depth, config["embedding_size"])
    return AugmentCNN(
        config["channel"],
        config["n_layers"],
        parse(config["genotypes"][config["genotype"]]),
        stem_multiplier=config["stem_multiplier"],
        emb=config["embedding_size"],
    )
