"""The distillation loss between the embeddings of a student and a teacher (paper, Section III-C)."""

import torch
import torch.nn.functional as F
from torch import Tensor


def distillation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Returns the mean squared difference of the normalised embeddings over all elements: a scalar, at least float32.

    Args:
        student: (B, D) embeddings of any length.
        teacher: (B, D) embeddings of length 1.
    """
    student = student.to(torch.promote_types(student.dtype, torch.float32))
    return F.mse_loss(F.normalize(student, dim=1), teacher)
