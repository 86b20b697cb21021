"""Configs and inputs of the networks that the check runs."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.gpu_check.processes import ROOT
from benchmarks.gpu_check.stages import Context
from config import load_config
from config.base import Config

_SIZE = 112  # as in utils/datasets/alignment.py, which imports OpenCV; some stages do without
SMALL_SEARCH = [
    "channel=4", "n_layers=4", "n_nodes=2", "search_space=none,skip_connect,dw_conv_3x3", "embedding_size=16",
    "workers=0",
]  # fmt: skip
_SMALL = ["channel=4", "n_layers=4", "embedding_size=32", "batch_size=4", "workers=1"]


def network_arguments(context: Context) -> list[str]:
    """Returns the command-line arguments that name the network: PocketNetS-128 on a GPU, a small one on a CPU."""
    name = "config_PocketNetS128.py" if context.on_gpu else "config_demo.py"
    return ["--config", str(ROOT / "config" / name), *([] if context.on_gpu else _SMALL)]


def network_config(context: Context, *overrides: str, distillation: bool = False) -> Config:
    """Returns the config of that network, with overrides "field=value". distillation: as for `load_config`."""
    _, file, *fields = network_arguments(context)
    return load_config(file, [*fields, *overrides], distillation)


def run_fields(context: Context, name: str) -> list[str]:
    """Returns the config fields of a run on the faces of the stage `faces`, in a folder of its own."""
    folder = context.folder / "runs"
    return [
        f"rec={context.folder / 'faces'}", "num_classes=0", "num_image=0", "val_targets=demo", "eval_step=0",
        "save_initial=0", f"output={folder / name}", f"log_dir={folder / 'logs'}", f"device={context.device}",
    ]  # fmt: skip


def draw_images(batch: int, seed: int = 0) -> Tensor:
    """Returns smooth random images (B, 3, 112, 112) in [-1, 1], which differ as faces do: noise alone averages out."""
    generator = torch.Generator().manual_seed(seed)
    small = torch.randn(batch, 3, 7, 7, generator=generator)
    images = F.interpolate(small, (_SIZE, _SIZE), mode="bicubic").clamp_(-1, 1)
    return images.contiguous(memory_format=torch.channels_last)


def draw_labels(batch: int, classes: int, seed: int = 0) -> Tensor:
    """Returns random labels (B,) int64."""
    return torch.randint(0, classes, (batch,), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def fix_statistics(backbone: nn.Module, images: Tensor) -> None:
    """Puts a network in evaluation mode, with running statistics by which the signal keeps its size in every layer.

    Each batch norm has mean 0, and for all channels the mean square of its input. images: (B, 3, 112, 112).
    """

    def measure(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        norm.get_buffer("running_mean").zero_()
        norm.get_buffer("running_var").fill_(inputs[0].square().mean())

    norms = [module for module in backbone.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]
    hooks = [norm.register_forward_pre_hook(measure) for norm in norms]
    backbone.eval()(images)
    for hook in hooks:
        hook.remove()
