"""Computes embeddings of images and of their hflips, with PyTorch or OpenVINO."""

from typing import Protocol

import numpy as np
import torch
from torch import nn

from backbones.folding import fold
from config.base import Config
from eval.inference.openvino import OpenVinoRuntime
from utils.datasets.transforms import normalise
from utils.distributed.process_group import World
from utils.errors import UserError
from utils.logs.progress_bar import ProgressReporter
from utils.openvino_core import is_installed

_MIN_IMAGES_FOR_OPENVINO = 1000  # below, PyTorch finishes before OpenVINO has converted the network (about 2 s)


class Runtime(Protocol):
    """Runs a backbone on batches of about `batch` images."""

    batch: int

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(B, 112, 112, 3) uint8 RGB -> embeddings (B, D) of the images and (B, D) of their hflips, float32."""


class TorchRuntime:
    """Runs a folded copy of a backbone, with its present weights, on the backbone's device. See `Runtime`."""

    def __init__(self, backbone: nn.Module, device: torch.device, batch: int) -> None:
        self.network = fold(backbone)  # also of a compiled network an eager one, which takes batches of any size
        self.device = device
        self.batch = batch

    @torch.inference_mode()
    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `Runtime`."""
        pixels = normalise(torch.from_numpy(images).to(self.device))  # (B, 3, 112, 112)
        direct, flipped = self.network(pixels).float(), self.network(pixels.flip(3)).float()
        return direct.cpu().numpy(), flipped.cpu().numpy()


def make_runtime(backbone: nn.Module, config: Config, world: World, n_images: int) -> Runtime:
    """Returns the runtime that `choose_runtime` names. Raises UserError as it does."""
    if choose_runtime(config, world, n_images) == "openvino":
        return OpenVinoRuntime(backbone)
    return TorchRuntime(backbone, world.device, config.eval_batch)


def choose_runtime(config: Config, world: World, n_images: int) -> str:
    """Returns what config.eval_runtime names: torch or openvino; for auto, the faster one for n_images on this device.

    Raises UserError if OpenVINO is requested and cannot be used.
    """
    on_cpu = world.device.type == "cpu"
    name = config.eval_runtime
    if name == "openvino" and not on_cpu:
        raise UserError("config eval_runtime: openvino runs on CPUs", fix="take auto or torch on a GPU")
    if name == "openvino" and not is_installed():
        raise UserError("config eval_runtime: OpenVINO is not installed: pip install openvino, or take auto or torch")
    if name == "auto":
        return "openvino" if on_cpu and n_images >= _MIN_IMAGES_FOR_OPENVINO and is_installed() else "torch"
    return name


def embed(runtime: Runtime, images: np.ndarray, progress: str = "") -> tuple[np.ndarray, np.ndarray]:
    """(N, 112, 112, 3) uint8 RGB -> embeddings (N, D) of the images and (N, D) of their hflips, float32.

    N may be 0 on ranks without images. progress: label of the progress bar or of the log lines; empty: no progress.
    """
    parts = []
    with ProgressReporter(len(images), progress, "images", bool(progress)) as progress_bar:
        for start in range(0, max(1, len(images)), runtime.batch):  # one empty batch if N is 0
            parts.append(runtime(images[start : start + runtime.batch]))
            progress_bar.update(len(parts[-1][0]))
    direct, flipped = zip(*parts, strict=True)
    return np.concatenate(direct), np.concatenate(flipped)
