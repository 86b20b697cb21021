"""AdaFace: a margin that adapts to the quality of an image, measured by its embedding's norm (arXiv 2204.00964)."""

import torch
from torch import Tensor

from config.base import Config
from utils.losses.margin import Margin

# The paper's settings.
H = 0.333  # concentration: norms within one standard deviation take two thirds of their range
MOMENTUM = 0.01  # weight of a batch in the running mean and standard deviation of the norms
INITIAL_MEAN, INITIAL_STD = 20.0, 100.0
SHORTEST, LONGEST = 0.001, 100.0  # norms are clipped to this range
EPSILON = 1e-3  # keeps the quality finite where all norms are equal


class AdaFaceMargin(Margin):
    """Replaces cos θ by cos(θ + g_angle) - g_add, with g_angle = -m · z and g_add = m · z + m.

    z is the norm's distance from the running mean, in standard deviations times H, clipped to [-1, 1]: images of high
    quality (z = 1) get a margin that emphasises hard images, those of low quality (z = -1) one that does not. No
    gradient passes through the norms. θ + g_angle is clipped to [0, π]. The paper has m = 0.4 and s = 64.

    Attributes:
        mean, std: (), running mean and standard deviation of the norms over the batches of all ranks.
    """

    uses_norms = True
    mean: Tensor
    std: Tensor

    def __init__(self, m: float) -> None:
        super().__init__()
        self.m = m
        self.register_buffer("mean", torch.tensor(INITIAL_MEAN))
        self.register_buffer("std", torch.tensor(INITIAL_STD))

    @torch.no_grad()
    def observe_norms(self, norms: Tensor) -> None:
        """Moves mean and std by MOMENTUM towards those of (N, 1) norms. A single norm has no standard deviation."""
        norms = norms.clamp(SHORTEST, LONGEST)
        self.mean.lerp_(norms.mean().to(self.mean.dtype), MOMENTUM)
        if len(norms) > 1:
            self.std.lerp_(norms.std().to(self.std.dtype), MOMENTUM)

    def forward(self, cosine: Tensor, norms: Tensor | None) -> Tensor:
        """Returns cos(θ + g_angle) - g_add for cos θ, (B, 1), and norms, (B, 1)."""
        assert norms is not None
        z = ((norms.clamp(SHORTEST, LONGEST) - self.mean) / (self.std + EPSILON) * H).clamp(-1.0, 1.0)  # (B, 1)
        angle = -self.m * z
        # Rounding can put a cosine beyond ±1, and the gradient of the root is infinite at 0: clamp both.
        cosine = cosine.clamp(-1.0, 1.0)
        sine = (1.0 - cosine.square()).clamp_min(1e-7).sqrt()  # 1e-7: float32's resolution of 1 - cos²
        shifted = cosine * angle.cos() - sine * angle.sin()  # cos(θ + angle)
        below_zero = (angle < 0) & (cosine > angle.cos())  # θ < -angle
        beyond_pi = (angle > 0) & (cosine < -angle.cos())  # θ > π - angle
        shifted = torch.where(below_zero, 1.0, torch.where(beyond_pi, -1.0, shifted))
        return shifted - (self.m * z + self.m)


def adaface(config: Config) -> Margin:
    """Returns the margin of the config: the entry of the table LOSSES in utils/registry.py."""
    return AdaFaceMargin(config.m)
