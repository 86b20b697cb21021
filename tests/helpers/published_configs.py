"""Texts of the six config files of the published code, generated from the fields and values that they set."""

import json
from typing import Any

from tests.conftest import GOLDEN

PUBLISHED: dict[str, dict[str, Any]] = json.loads((GOLDEN / "published_configs.json").read_text())
_NETWORK_FIELDS = ("channel", "n_layers")
_DATA_FIELDS = ("rec", "num_classes", "num_image", "num_epoch", "warmup_epoch", "val_targets", "eval_step")


def published_config(fields: dict[str, Any]) -> str:
    """Returns the text of a config file in the published style.

    Fields are set one by one on an EasyDict, those of the network and of the dataset inside a branch on its name; the
    learning rate is a function.
    """

    def assignments(names, indent=""):
        return [f"{indent}config.{name} = {fields[name]!r}" for name in names if name in fields]

    unconditional = [name for name in fields if name not in (*_NETWORK_FIELDS, *_DATA_FIELDS, "lr_func")]
    return "\n".join(
        [
            "from easydict import EasyDict as edict",
            "",
            "config = edict()",
            *assignments(unconditional),
            "",
            f"if config.net_name == {fields['net_name']!r}:",
            *assignments(_NETWORK_FIELDS, "    "),
            "",
            f"if config.dataset == {fields['dataset']!r}:",
            *assignments(_DATA_FIELDS, "    "),
            "",
            "    def lr_step_func(epoch):",
            "        return ((epoch + 1) / (4 + 1)) ** 2 if epoch < config.warmup_epoch else 0.1 ** len(",
            "            [m for m in [8, 14, 20, 25] if m - 1 <= epoch])",
            "    config.lr_func = lr_step_func",
            "",
        ]
    )
