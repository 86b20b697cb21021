"""Embeddings of images and of their mirror images."""

from typing import Protocol

import numpy as np
import torch
from easydict import EasyDict
from torch import nn

from eval.inference.openvino import OpenVinoRuntime, is_installed
from utils.datasets.transforms import normalise
from utils.distributed.process_group import World
from utils.errors import UserError
from utils.logs.progress_bar import Progress

_WORTH_CONVERTING = 1000  # images to embed: below, PyTorch is done before OpenVINO has the network (some two seconds)


class Runtime(Protocol):
    """What runs a backbone: `batch` images or so at a time."""

    batch: int

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(B, 112, 112, 3) uint8 RGB -> embeddings (B, D) of the images and (B, D) of their mirror images, float32."""


class TorchRuntime:
    """PyTorch itself, on any device. The backbone is in evaluation mode meanwhile, and then as it was."""

    def __init__(self, backbone: nn.Module, device: torch.device, batch: int) -> None:
        self.backbone = backbone
        self.device = device
        self.batch = batch

    @torch.inference_mode()
    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `Runtime`."""
        was_training = self.backbone.training
        self.backbone.eval()
        pixels = normalise(torch.from_numpy(images).to(self.device))  # (B, 3, 112, 112)
        direct, flipped = self.backbone(pixels).float(), self.backbone(pixels.flip(3)).float()
        self.backbone.train(was_training)
        return direct.cpu().numpy(), flipped.cpu().numpy()


def make_runtime(backbone: nn.Module, config: EasyDict, world: World, n_images: int) -> Runtime:
    """What embeds n_images fastest here, or what config.eval_runtime says: auto, torch or openvino.

    Raises UserError where OpenVINO is asked for and cannot serve.
    """
    on_cpu = world.device.type == "cpu"
    wanted = config.eval_runtime
    if wanted == "openvino" and not on_cpu:
        raise UserError("config eval_runtime: openvino runs on CPUs; take auto or torch on a GPU")
    if wanted == "openvino" and not is_installed():
        raise UserError("config eval_runtime: OpenVINO is not installed: pip install openvino, or take auto or torch")
    if wanted == "openvino" or (wanted == "auto" and on_cpu and n_images >= _WORTH_CONVERTING and is_installed()):
        return OpenVinoRuntime(backbone)
    return TorchRuntime(backbone, world.device, config.eval_batch)


def embed(runtime: Runtime, images: np.ndarray, progress: str = "") -> tuple[np.ndarray, np.ndarray]:
    """(N, 112, 112, 3) uint8 RGB -> embeddings (N, D) of the images and (N, D) of their mirror images, float32.

    N may be 0: there may be more processes than images. `progress` names a bar on a terminal, or lines of the log.
    """
    parts = []
    with Progress(len(images), progress, "images", bool(progress)) as shown:
        for start in range(0, max(1, len(images)), runtime.batch):  # an empty batch where there is no image
            parts.append(runtime(images[start : start + runtime.batch]))
            shown.update(len(parts[-1][0]))
    direct, flipped = zip(*parts, strict=True)
    return np.concatenate(direct), np.concatenate(flipped)
