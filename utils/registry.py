"""The tables of what a config can choose by name. A new choice is a new file and one line here (docs/extending.md).

An entry names its function or class as text, "module:name", which `load_entry` imports when it is used. So this module,
and every config, loads without torch, and a table may name modules of any room.
"""

from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Backbone:
    """A network that config.net_name and config.teacher_network can name.

    Attributes:
        builder: "module:function". The function takes a config, and returns a module that maps (B, 3, 112, 112)
            normalised images to embeddings (B, config.embedding_size).
        fields: config fields that define the network, besides embedding_size. Other networks ignore them.
        size: values of such fields that the name stands for. A teacher has them; a student's own fields must agree.
        description: text that is equal only for networks with the same weights; may hold {field} for each of `fields`.
    """

    builder: str
    fields: tuple[str, ...] = ()
    size: dict[str, int] = field(default_factory=dict)
    description: str = ""


_POCKETNET = Backbone(
    "backbones.augment_cnn:pocketnet",
    ("channel", "n_layers", "stem_multiplier", "genotype"),
    description="PocketNet {channel}, {n_layers} cells, stem {stem_multiplier}, {genotype}",
)
# Names of networks as messages show them; backbones/names.py reads further spellings of the published ones.
BACKBONES = {
    "PocketNet": _POCKETNET,
    "PocketNetS": replace(_POCKETNET, size={"channel": 16, "n_layers": 18}),
    "PocketNetM": replace(_POCKETNET, size={"channel": 32, "n_layers": 9}),
    "iresnet18": Backbone("backbones.iresnet:iresnet18", description="IResNet 18"),
    "iresnet34": Backbone("backbones.iresnet:iresnet34", description="IResNet 34"),
    "iresnet50": Backbone("backbones.iresnet:iresnet50", description="IResNet 50"),
    "iresnet100": Backbone("backbones.iresnet:iresnet100", description="IResNet 100"),
}

# Operations of cells: functions (channels, stride, affine) -> module. config.search_space chooses those of a search.
OPERATIONS = {
    "max_pool_3x3": "backbones.ops:max_pool_3x3",
    "avg_pool_3x3": "backbones.ops:avg_pool_3x3",
    "skip_connect": "backbones.ops:skip_connect",
    "dw_conv_1x1": "backbones.ops:dw_conv_1x1",
    "dw_conv_3x3": "backbones.ops:dw_conv_3x3",
    "dw_conv_5x5": "backbones.ops:dw_conv_5x5",
    "dw_conv_7x7": "backbones.ops:dw_conv_7x7",
    "none": "backbones.ops:none",
}

# Losses, for config.loss: functions of a config that return a Margin (utils/losses/margin.py).
LOSSES = {
    "arcface": "utils.losses.arcface:arcface",
    "cosface": "utils.losses.cosface:cosface",
    "adaface": "utils.losses.adaface:adaface",
}

# Optimizers, for config.optimizer: functions (parameters, config) -> torch.optim.Optimizer.
OPTIMIZERS = {
    "sgd": "utils.training.optimizers:sgd",
    "adamw": "utils.training.optimizers:adamw",
}

# Kinds of training data, for config.data_source: classes of a folder, subclasses of ImageDataset.
DATA_SOURCES = {
    "recordio": "utils.datasets.face_dataset:FaceDataset",
    "cifar10": "utils.datasets.cifar10:Cifar10",
}


def load_entry(entry: str) -> Any:
    """Imports the function or class that an entry names as "module:name"."""
    module, _, name = entry.partition(":")
    return getattr(import_module(module), name)
