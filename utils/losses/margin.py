"""The margin of a classification loss: what distinguishes ArcFace, CosFace and their kind."""

import torch
from torch import Tensor, nn


class Margin(nn.Module):
    """Shifts the cosine of the target class, which makes the classification harder. Losses are subclasses.

    Attributes:
        uses_norms: whether `forward` needs the norms of the embeddings, which several ranks have to exchange.
    """

    uses_norms = False

    def forward(self, cosine: Tensor, norms: Tensor | None) -> Tensor:
        """Returns the shifted cosines, float32.

        Args:
            cosine: (B, 1) float32, cosine of each embedding to its own class.
            norms: (B, 1) float32, length of each embedding before normalisation, without gradient; None unless
                uses_norms.
        """
        raise NotImplementedError

    def observe_norms(self, norms: Tensor) -> None:
        """Updates running statistics of the norms, if the margin has any; called before `forward` in training.

        norms: (N, 1) float32, lengths of the embeddings of all ranks, the same on every rank.
        """


def embedding_norms(embeddings: Tensor) -> Tensor:
    """Returns the length of each embedding, (B, D) -> (B, 1), without gradient."""
    return torch.linalg.vector_norm(embeddings.detach(), dim=1, keepdim=True)
