"""The ArcFace header, class centres with an angular margin (arXiv 1801.07698), and the task that trains with it."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ArcFace(nn.Module):
    """Logits of the cosine to each class centre, with a margin of m radians on the angle of the image's own class.

    Beyond the angle π - m, where cos(θ + m) would rise again, the linear continuation cos θ - m · sin(π - m) is
    used, as in the published header. Always float32: half precision cannot hold the angles near 0.
    """

    def __init__(self, in_features: int, out_features: int, s: float = 64.0, m: float = 0.5) -> None:
        """in_features: the embedding's size; out_features: the number of classes."""
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
    """cos(θ + m) of cos θ, or its linear continuation beyond π - m; any shape."""
    # Rounding can put a cosine beyond ±1, and the root's gradient is infinite at 0: both are held finite here.
    cosine = cosine.clamp(-1.0, 1.0)
    sine = (1.0 - cosine.square()).clamp_min(1e-7).sqrt()  # 1e-7: float32's resolution of 1 - cos²
    shifted = cosine * math.cos(m) - sine * math.sin(m)  # cos(θ + m)
    continuation = cosine - m * math.sin(m)
    return torch.where(cosine > -math.cos(m), shifted, continuation)


def header_loss(header: nn.Module, embeddings: Tensor, labels: Tensor) -> Tensor:
    """The cross-entropy of a header's logits, scalar; a sharded header has none to show and gives its loss itself."""
    found = header(embeddings, labels)
    return F.cross_entropy(found, labels) if found.ndim else found
