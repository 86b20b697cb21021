"""The networks: `build_backbone` makes the one a config names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from backbones.genotypes import parse

if TYPE_CHECKING:
    from torch import nn


def build_backbone(config: Mapping[str, Any], net_name: str | None = None) -> nn.Module:
    """A freshly initialised backbone: (B, 3, 112, 112) normalised images to (B, embedding_size).

    `net_name` (default: the config's) is iresnet18, 34, 50 or 100, or else a PocketNet of the config's channel,
    n_layers and genotype.
    """
    # Imported here, not above: configs read genotypes from this package, and loading a config needs no torch.
    from backbones.augment_cnn import AugmentCNN
    from backbones.iresnet import IResNet

    if match := re.fullmatch(r"i?resnet[-_]?(\d+)", net_name or config["net_name"], re.IGNORECASE):
        return IResNet(int(match[1]), config["embedding_size"])
    return AugmentCNN(
        config["channel"],
        config["n_layers"],
        parse(config["genotypes"][config["genotype"]]),
        stem_multiplier=config["stem_multiplier"],
        emb=config["embedding_size"],
    )
