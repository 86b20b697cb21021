"""The ArcFace header: class centres with an angular margin (arXiv 1801.07698), and its loss."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ArcFace(nn.Module):
    """Computes the cosine to each class centre, with a margin of m radians added to the angle of the target class.

    Beyond the angle π - m, where cos(θ + m) would rise again, it uses the linear continuation cos θ - m · sin(π - m),
    as the published header does. Always computes in float32: half precision cannot represent the angles near 0.
    """

    def __init__(self, in_features: int, out_features: int, s: float = 64.0, m: float = 0.5) -> None:
        """Initialises the kernel, (in_features, out_features), from a normal distribution of std 0.01.

        Args:
            in_features: embedding size.
            out_features: number of classes.
            s: scale of the logits.
            m: margin in radians.
        """
        super().__init__()
        self.s = s
        self.m = m
        self.kernel = nn.Parameter(torch.empty(in_features, out_features))
        nn.init.normal_(self.kernel, std=0.01)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """(B, in_features), (B,) int64 -> logits (B, out_features) float32, scaled by s."""
        with torch.autocast(embeddings.device.type, enabled=False):
            embeddings = F.normalize(embeddings.float(), dim=1)
            cosine = embeddings @ F.normalize(self.kernel.float(), dim=0)  # (B, out_features)
            target = cosine.gather(1, labels[:, None])  # (B, 1)
            return cosine.scatter(1, labels[:, None], add_angular_margin(target, self.m)) * self.s


def add_angular_margin(cosine: Tensor, m: float) -> Tensor:
    """Returns cos(θ + m) for cos θ, or its linear continuation for θ beyond π - m. Any shape."""
    # Rounding can put a cosine beyond ±1, and the gradient of the root is infinite at 0: clamp both.
    cosine = cosine.clamp(-1.0, 1.0)
    sine = (1.0 - cosine.square()).clamp_min(1e-7).sqrt()  # 1e-7: float32's resolution of 1 - cos²
    shifted = cosine * math.cos(m) - sine * math.sin(m)  # cos(θ + m)
    continuation = cosine - m * math.sin(m)
    return torch.where(cosine > -math.cos(m), shifted, continuation)


def header_loss(header: nn.Module, embeddings: Tensor, labels: Tensor) -> Tensor:
    """Returns the cross-entropy of a header's logits, a scalar. A sharded header returns the loss itself, no logits."""
    output = header(embeddings, labels)
    return F.cross_entropy(output, labels) if output.ndim else output
