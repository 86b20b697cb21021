"""ArcFace: an additive angular margin on the target class (arXiv 1801.07698)."""

import math

import torch
from torch import Tensor

from config.base import Config
from utils.losses.header import Header
from utils.losses.margin import Margin


class ArcFaceMargin(Margin):
    """Adds m radians to the angle of the target class.

    Beyond the angle π - m, where cos(θ + m) would rise again, it uses the linear continuation cos θ - m · sin(π - m),
    as the published header does.
    """

    def __init__(self, m: float) -> None:
        super().__init__()
        self.m = m

    def forward(self, cosine: Tensor, norms: Tensor | None) -> Tensor:
        """Returns cos(θ + m) for cos θ, or its linear continuation for θ beyond π - m. Any shape."""
        # Rounding can put a cosine beyond ±1, and the gradient of the root is infinite at 0: clamp both.
        cosine = cosine.clamp(-1.0, 1.0)
        sine = (1.0 - cosine.square()).clamp_min(1e-7).sqrt()  # 1e-7: float32's resolution of 1 - cos²
        shifted = cosine * math.cos(self.m) - sine * math.sin(self.m)  # cos(θ + m)
        continuation = cosine - self.m * math.sin(self.m)
        return torch.where(cosine > -math.cos(self.m), shifted, continuation)


def arcface(config: Config) -> Margin:
    """Returns the margin of the config: the entry of the table LOSSES in utils/registry.py."""
    return ArcFaceMargin(config.m)


class ArcFace(Header):
    """Header with the ArcFace margin, under its published name."""

    def __init__(self, in_features: int, out_features: int, s: float = 64.0, m: float = 0.5) -> None:
        """m: margin in radians. Other arguments as in Header."""
        super().__init__(in_features, out_features, ArcFaceMargin(m), s)
        self.m = m
