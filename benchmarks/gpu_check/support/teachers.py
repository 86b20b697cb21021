"""Teachers with random weights: distillation needs checkpoints, not knowledge."""

import torch

from backbones.build import build_backbone
from benchmarks.gpu_check.stages import Context
from benchmarks.gpu_check.support.networks import draw_images, fix_statistics, network_config
from utils.checkpoints.weights import save_weights
from utils.distillation.teacher import teacher_network_config

STEPS = (10, 20)  # of the teacher's checkpoints


def teacher_fields(context: Context) -> list[str]:
    """Returns the config fields of a teacher, and writes its checkpoints if they are not there yet."""
    folder = context.folder / "teacher"
    network = "iresnet100" if context.on_gpu else "PocketNet"
    size = [] if context.on_gpu else ["teacher_channel=8", "teacher_n_layers=4"]
    fields = [f"teacher_pth={folder}", f"teacher_global_step={STEPS[-1]}", f"teacher_network={network}", *size]
    if not folder.exists():
        folder.mkdir(parents=True)
        config = teacher_network_config(network_config(context, *fields, distillation=True))
        for step in STEPS:
            torch.manual_seed(step)
            backbone = build_backbone(config)
            fix_statistics(backbone, draw_images(2, step))  # else an untrained IResNet-100 overflows
            save_weights(folder / f"{step}backbone.pth", backbone)
    return fields
