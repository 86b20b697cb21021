"""Converts uint8 images to the network's input on the device: float work on the CPU costs more than decoding."""

import torch
from torch import Tensor


def normalise(images: Tensor) -> Tensor:
    """(B, H, W, 3) uint8 RGB -> (B, 3, H, W) float32 in [-1, 1], (x/255 - 0.5)/0.5, in channels_last memory."""
    return images.permute(0, 3, 1, 2).float().div_(255).sub_(0.5).div_(0.5)


def hflip(images: Tensor, flipped: Tensor) -> Tensor:
    """Flips the (B, H, W, 3) images left to right where `flipped`, (B,) bool on the same device, is true."""
    return torch.where(flipped[:, None, None, None], images.flip(2), images)
