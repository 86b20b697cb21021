"""Texts of the six config files of the published code, generated from the fields and values that they set."""

import json
from typing import Any

from tests.helpers.paths import GOLDEN

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


# Published style: fields set one by one on an EasyDict, genotypes as strings, a branch on the dataset, lr_func.
PUBLISHED_CONFIG = """
from easydict import EasyDict as edict

config = edict()
config.dataset = "emoreIresNet"
config.embedding_size = 256
config.momentum = 0.9
config.weight_decay = 5e-4
config.batch_size = 128
config.lr = 0.1
config.output = "output/PocketNetM256"
config.global_step = 0
config.s = 64.0
config.m = 0.5
config.test_output = "output/test"
config.genotypes = dict({
    "softmax_cifar10": "Genotype(normal=[[('dw_conv_7x7', 0), ('dw_conv_3x3', 1)]], normal_concat=range(2, 3), "
                       "reduce=[[('max_pool_3x3', 0), ('dw_conv_7x7', 1)]], reduce_concat=range(2, 3))",
    "softmax_casia": "Genotype(normal=[[('dw_conv_3x3', 0), ('dw_conv_1x1', 1)]], normal_concat=range(2, 3), "
                     "reduce=[[('dw_conv_3x3', 1), ('dw_conv_7x7', 0)]], reduce_concat=range(2, 3))",
})
config.teacher_pth = "output/teacher"
config.teacher_global_step = 295672
config.teacher_network = "resnet100"
config.student_pth = ""
config.student_global_step = 0
config.net_name = "PocketNetM-256"
config.channel = 32
config.n_layers = 9
config.w = 100
if config.dataset == "emoreIresNet":
    config.rec = "data/faces_emore"
    config.num_classes = 85742
    config.num_image = 5822653
    config.num_epoch = 26
    config.warmup_epoch = -1
    config.val_targets = ["lfw", "cfp_fp"]
    config.eval_step = 5686

    def lr_step_func(epoch):
        return ((epoch + 1) / (4 + 1)) ** 2 if epoch < config.warmup_epoch else 0.1 ** len(
            [m for m in [8, 14, 20, 25] if m - 1 <= epoch])

    config.lr_func = lr_step_func
"""
