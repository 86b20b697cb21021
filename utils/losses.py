"""The ArcFace header, class centres with an angular margin (arXiv 1801.07698), and the task that trains with it."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.task import Batch, Task


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
            own = cosine.gather(1, labels[:, None])  # (B, 1)
            return cosine.scatter(1, labels[:, None], self._with_margin(own)) * self.s

    def _with_margin(self, cosine: Tensor) -> Tensor:
        # Rounding can put a cosine beyond ±1, and the root's gradient is infinite at 0: both are held finite here.
        cosine = cosine.clamp(-1.0, 1.0)
        sine = (1.0 - cosine.square()).clamp_min(1e-7).sqrt()  # 1e-7: float32's resolution of 1 - cos²
        with_margin = cosine * math.cos(self.m) - sine * math.sin(self.m)  # cos(θ + m)
        continuation = cosine - self.m * math.sin(self.m)
        return torch.where(cosine > -math.cos(self.m), with_margin, continuation)


class ArcFaceTask(Task):
    """Plain training: the cross-entropy of the header's logits."""

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """{"Loss": scalar}."""
        logits = self.header(self.backbone(batch.images), batch.labels)
        return {"Loss": F.cross_entropy(logits, batch.labels)}
