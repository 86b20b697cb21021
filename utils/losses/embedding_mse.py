"""The distance of a student's embeddings to a teacher's (paper, Section III-C)."""

import torch
import torch.nn.functional as F
from torch import Tensor


def distillation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """The mean, over all elements, of the squared differences of the embeddings at length 1. Never in half precision.

    Args:
        student: (B, D) embeddings of any length.
        teacher: (B, D) embeddings of length 1.
    """
    student = student.to(torch.promote_types(student.dtype, torch.float32))
    return F.mse_loss(F.normalize(student, dim=1), teacher)
