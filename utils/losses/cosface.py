"""CosFace: an additive margin on the cosine of the target class (arXiv 1801.09414)."""

from torch import Tensor

from config.base import Config
from utils.losses.margin import Margin


class CosFaceMargin(Margin):
    """Subtracts m from the cosine of the target class. The paper has m = 0.35 and s = 64."""

    def __init__(self, m: float) -> None:
        super().__init__()
        self.m = m

    def forward(self, cosine: Tensor, norms: Tensor | None) -> Tensor:
        """Returns cos θ - m. Any shape."""
        return cosine - self.m


def cosface(config: Config) -> Margin:
    """Returns the margin of the config: the entry of the table LOSSES in utils/registry.py."""
    return CosFaceMargin(config.m)
