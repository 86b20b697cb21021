"""From uint8 images to the network's input, on the device: float work on the CPU costs more than decoding."""

import torch
from torch import Tensor

SIZE = 112  # height and width of an aligned face in pixels


def normalise(images: Tensor) -> Tensor:
    """(B, H, W, 3) uint8 RGB -> (B, 3, H, W) float32 in [-1, 1], (x/255 - 0.5)/0.5, in channels_last memory."""
    return images.permute(0, 3, 1, 2).float().div_(255).sub_(0.5).div_(0.5)


def mirror(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirrors each of the (B, H, W, 3) images left to right with probability 0.5; generator: of their device."""
    mirrored = torch.rand(len(images), 1, 1, 1, generator=generator, device=images.device) < 0.5
    return torch.where(mirrored, images.flip(2), images)
