"""AdaDistill: class centres that are moving averages of a teacher's embeddings (arXiv 2407.01332; docs/recipes.md)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.distributed.collectives import all_gather_tensor
from utils.distributed.data_parallel import unwrap_ddp
from utils.distributed.process_group import World
from utils.losses.partial_fc import ShardedHeader


class DistilledCentres:
    """Moves the class centres of a header, which no gradient changes, by the teacher's embeddings of each batch.

    The header's kernel is the only state. A column of zeros is a class that no batch has had yet.
    """

    def __init__(self, header: nn.Module, world: World) -> None:
        """header: replicated or sharded, with a kernel that is not trained."""
        inner = unwrap_ddp(header)
        self.kernel = inner.get_parameter("kernel")  # (D, K), of a sharded header those of this rank
        self.first_class = inner.class_slice.start if isinstance(inner, ShardedHeader) else 0
        self.world = world
        self._changed: tuple[Tensor, Tensor] | None = None  # columns (N,) of the last batch, and centres (N, D) before

    @torch.no_grad()
    def move(self, student: Tensor, teacher: Tensor, labels: Tensor) -> None:
        """Moves the centres of the classes of all ranks' batches. Collective: the ranks have equally many images.

        Args:
            student: (B, D) embeddings of any length.
            teacher: (B, D) embeddings of the same images.
            labels: (B,) int64.
        """
        with torch.autocast(student.device.type, enabled=False):
            teacher = F.normalize(teacher.float(), dim=1)
            agreement = (F.normalize(student.float(), dim=1) * teacher).sum(1).clamp(0, 1)  # (B,)
            parts = (agreement, teacher, labels)
            agreement, teacher, labels = (all_gather_tensor(rows, self.world) for rows in parts)  # of N images
            columns = labels - self.first_class
            is_local = (columns >= 0) & (columns < self.kernel.shape[1])  # else another rank holds the column
            columns = torch.where(is_local, columns, 0)
            before = self.kernel[:, columns].T  # (N, D)
            same_class = (columns[:, None] == columns) & is_local  # (N, N)
            # Images of one class write one column: all of them the same bits.
            self.kernel.index_copy_(1, columns, moved_centres(before, agreement, teacher, same_class).T)
        self._changed = columns, before

    @torch.no_grad()
    def undo(self, condition: Tensor) -> None:
        """Restores the centres of before the last `move` where a () bool condition on the device is true."""
        if self._changed:
            columns, before = self._changed
            self.kernel.index_copy_(1, columns, torch.where(condition, before.T, self.kernel[:, columns]))


def moved_centres(centres: Tensor, agreement: Tensor, teacher: Tensor, same_class: Tensor) -> Tensor:
    """Returns the new centre of the class of each image, (N, D), of length 1: c + mean of b_i · (t_i - c), normalised.

    The mean is over the images i of the class, t_i is the teacher's embedding, and b_i = (1 - a_i) · h_i. a_i is the
    cosine of the student's embedding and t_i: early in training a centre follows the single embedding, later it is a
    long average. h_i, the cosine of t_i and c, is low for hard images, which so count less.
    Negative cosines count as 0. The first images of a class become its centre: b_i = 1.

    Args:
        centres: (N, D), c of each image's class; zeros if it has none yet.
        agreement: (N,), a_i.
        teacher: (N, D), t_i, of length 1.
        same_class: (N, N) bool, whether the image of the column counts for the centre of the row's image.
    """
    old = F.normalize(centres, dim=1)
    is_new = ~centres.any(1)  # (N,)
    weight = torch.where(is_new, 1.0, (1 - agreement) * (teacher * old).sum(1).clamp(0, 1))[:, None]  # (N, 1), b_i
    count = same_class.sum(1, keepdim=True)  # (N, 1)
    step = same_class.to(centres.dtype) @ (weight * (teacher - old)) / count.clamp_min(1)
    first = same_class.int().argmax(1)  # the rows of a product may differ in their last bits: take that of one image
    return torch.where(count > 0, F.normalize(old + step, dim=1)[first], centres)
