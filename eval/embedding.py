"""Embeddings of images and of their mirror images."""

import sys

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from utils.images import normalise


@torch.inference_mode()
def embed(
    backbone: nn.Module, images: np.ndarray, device: torch.device, batch: int = 128, progress: str = ""
) -> tuple[np.ndarray, np.ndarray]:
    """(N, 112, 112, 3) uint8 RGB -> embeddings (N, D) of the images and (N, D) of their mirror images, float32.

    The backbone is in evaluation mode meanwhile, and then as it was. `progress` names a bar on a terminal.
    """
    was_training = backbone.training
    backbone.eval()
    direct, mirrored = [], []
    bar = tqdm(
        total=len(images), desc=progress, unit="img", leave=False, disable=not (progress and sys.stderr.isatty())
    )
    for start in range(0, len(images), batch):
        part = normalise(torch.from_numpy(images[start : start + batch]).to(device))  # (B, 3, 112, 112)
        direct.append(backbone(part).float())
        mirrored.append(backbone(part.flip(3)).float())
        bar.update(len(part))
    bar.close()
    backbone.train(was_training)
    return torch.cat(direct).cpu().numpy(), torch.cat(mirrored).cpu().numpy()
