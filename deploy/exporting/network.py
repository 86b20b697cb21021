"""The network that is exported: folded, with its preprocessing and normalisation where they are asked for."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones.folding import fold
from utils.datasets.alignment import SIZE

INPUT, OUTPUT = "images", "embeddings"  # their names in every file


@dataclass(frozen=True)
class Interface:
    """The form of an exported network's inputs and outputs.

    Attributes:
        uint8: whether inputs are pixels (B, 112, 112, 3) from 0 to 255, else floats from -1 to 1.
        channels_last: whether inputs of floats are (B, 112, 112, 3), else (B, 3, 112, 112).
        unit: whether outputs have length 1.
        embedding_size: of one output.
    """

    uint8: bool
    channels_last: bool
    unit: bool
    embedding_size: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one input, without the batch."""
        return (SIZE, SIZE, 3) if self.uint8 or self.channels_last else (3, SIZE, SIZE)

    def example(self, batch: int) -> Tensor:
        """Returns zeros (batch, *shape) in the type of inputs, to trace the network with."""
        return torch.zeros(batch, *self.shape, dtype=torch.uint8 if self.uint8 else torch.float32)


class ExportNetwork(nn.Module):
    """A folded copy of a backbone with the inputs and outputs of an interface, in evaluation mode on the CPU."""

    def __init__(self, backbone: nn.Module, interface: Interface) -> None:
        super().__init__()
        self.backbone = fold(backbone).cpu()
        self.interface = interface
        self.eval()

    def forward(self, images: Tensor) -> Tensor:  # (B, *interface.shape) -> (B, D)
        x = images.permute(0, 3, 1, 2) if self.interface.shape[2] == 3 else images
        if self.interface.uint8:
            x = (x.float() - 127.5) * (1 / 127.5)
        embeddings = self.backbone(x)
        return F.normalize(embeddings) if self.interface.unit else embeddings
