"""The header with its classes split over the ranks, for more classes than fit on one device.

Each rank holds a contiguous slice of the kernel's columns (one column per class), and only the logits of these classes.
For a batch of N images the ranks exchange the embeddings (N, D) and their gradient, the labels (N,), and two sums and
one maximum per image. This is written with plain collectives: DTensor's loss_parallel supports neither a margin on the
target logit nor sampled classes, and needs a device mesh of its own; torch.distributed.nn.functional is deprecated.
"""

from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from utils.distributed.collectives import all_gather_tensor, run_on_main, shard_slice
from utils.distributed.process_group import World
from utils.errors import UserError
from utils.losses.column_shards import COLUMN_CHUNK, scatter_columns
from utils.losses.margin import Margin, embedding_norms


class ShardedHeader(nn.Module):
    """Computes the loss over the images of all ranks; each rank holds a slice of the classes.

    Do not wrap it in DataParallel: `kernel` differs on every rank, and its gradient is already complete. The
    gradient of the embeddings is that of the loss times the number of ranks, because the backbone's gradients are
    averaged over the ranks. All ranks must have the same number of images. Always computes in float32.

    A sample_rate below 1 gives Partial FC (arXiv 2203.15565): the softmax of a step covers only sampled columns. Each
    rank samples those of the batch's classes and random others, up to sample_rate of its columns. The draw depends only
    on seed, rank and step. The gradient is dense, 0 in columns not sampled: SGD still moves these by momentum and
    weight decay, whereas InsightFace's Partial FC leaves them unchanged.
    """

    def __init__(
        self,
        in_features: int,
        n_classes: int,
        margin: Margin,
        s: float,
        world: World,
        sample_rate: float = 1.0,
        seed: int = 0,
    ) -> None:
        """Draws the initial kernel, the same for any number of ranks.

        Args:
            in_features: embedding size.
            n_classes: number of classes of all ranks together.
            margin: of the target class.
            s: scale of the logits.
            world: the ranks to split the classes over, and this rank's device.
            sample_rate: fraction of the columns that take part in a step.
            seed: seed of the initial kernel and of the samples.
        """
        super().__init__()
        if n_classes < world.size:
            raise UserError(f"header: {n_classes} classes cannot be split over {world.size} processes", fix="use fewer")
        if not 0 < sample_rate <= 1:
            raise UserError(f"sample_rate: should be above 0 and at most 1, is {sample_rate}")
        self.n_classes, self.s = n_classes, s
        self.margin = margin.to(world.device)
        self.world, self.sample_rate, self.seed = world, sample_rate, seed
        self.class_slice = shard_slice(n_classes, world)
        self.step = 0
        self.kernel = nn.Parameter(
            torch.empty(in_features, self.class_slice.stop - self.class_slice.start, device=world.device)
        )
        with torch.no_grad():
            self._draw_kernel()

    def _draw_kernel(self) -> None:
        """Draws normal numbers of std 0.01 in chunks of the full kernel, so that no rank draws much of another's."""
        start, stop = self.class_slice.start, self.class_slice.stop
        for chunk in range(start // COLUMN_CHUNK, -(-stop // COLUMN_CHUNK)):
            first = chunk * COLUMN_CHUNK
            width = min(COLUMN_CHUNK, self.n_classes - first)
            drawn = torch.randn(len(self.kernel), width, generator=_generator("cpu", self.seed, chunk)) * 0.01
            left, right = max(start, first), min(stop, first + width)
            self.kernel[:, left - start : right - start] = drawn[:, left - first : right - first]

    def set_step(self, step: int) -> None:
        """Sets the step whose columns are sampled next. Each forward pass then adds 1."""
        self.step = step

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """(B, in_features), (B,) int64 of this rank -> mean loss over all ranks' images, a scalar. Collective."""
        with torch.autocast(embeddings.device.type, enabled=False):
            embeddings = embeddings.float()
            norms = embedding_norms(embeddings) if self.margin.uses_norms else None
            embeddings = F.normalize(embeddings, dim=1)
            if self.world.size > 1:
                embeddings, labels = _GatherRows.apply(embeddings, self.world), all_gather_tensor(labels, self.world)
            if norms is not None:
                norms = all_gather_tensor(norms, self.world)
                if self.training:
                    self.margin.observe_norms(norms)
            target = labels - self.class_slice.start  # (N,) the column of each image's class
            is_local = (target >= 0) & (target < self.kernel.shape[1])  # else another rank holds the column
            sampled = None
            if self.sample_rate < 1:
                sampled = self.sample(target, is_local)  # (K,)
                target = torch.searchsorted(sampled, target)
            centres = _NormalisedColumns.apply(self.kernel, sampled)  # (D, K)
            return _Loss.apply(embeddings, centres, target.clamp(0, centres.shape[1] - 1), is_local, norms, self)

    def sample(self, target: Tensor, is_local: Tensor) -> Tensor:
        """Returns the columns of this step, (K,) int64 ascending: the local ones of `target`, and random others.

        Args:
            target: (N,) int64, the column of each image's class.
            is_local: (N,) bool, whether this rank holds that column.
        """
        n_columns = self.kernel.shape[1]
        generator = _generator(target.device, self.seed, self.world.rank, self.step, 1)
        self.step += 1
        # Columns of other ranks mark one extra column, which is then dropped.
        needed = torch.zeros(n_columns + 1, dtype=torch.bool, device=target.device)
        needed = needed.index_fill_(0, torch.where(is_local, target, n_columns), True)[:-1]
        count = max(1, round(self.sample_rate * n_columns))
        if count < len(target):  # may be too few for the needed columns; counting them makes the host wait
            count = max(count, int(needed.sum()))
        order = torch.rand(n_columns, generator=generator, device=target.device).masked_fill_(needed, 2.0)
        return order.topk(count, sorted=False).indices.sort().values


class _Loss(torch.autograd.Function):
    """Cross-entropy over the columns of all ranks. Its gradient reuses the one tensor of the logits' size."""

    @staticmethod
    def forward(
        ctx: Any,
        embeddings: Tensor,
        centres: Tensor,
        target: Tensor,
        is_local: Tensor,
        norms: Tensor | None,
        header: ShardedHeader,
    ) -> Tensor:
        """Returns the mean loss, a scalar.

        Args:
            embeddings: (N, D), of length 1.
            centres: (D, K), columns of length 1.
            target: (N,) int64, the column in `centres` of each image's class where this rank holds it.
            is_local: (N,) bool, whether this rank holds it.
            norms: (N, 1), for the margin.
            header: for its margin, scale and ranks.
        """
        target, is_local = target[:, None], is_local[:, None]  # (N, 1)
        logits = embeddings @ centres  # (N, K), still cosines
        cosine = logits.gather(1, target)
        with torch.enable_grad():
            shifted = header.margin(cosine.requires_grad_(), norms)
            (slope,) = torch.autograd.grad(shifted.sum(), cosine)
        logits.scatter_(1, target, torch.where(is_local, shifted, cosine).detach()).mul_(header.s)
        highest = logits.amax(1, keepdim=True)
        _all_reduce(highest, dist.ReduceOp.MAX, header.world)
        logits.sub_(highest)
        local_target_logit = torch.where(is_local, logits.gather(1, target), 0.0)
        sums = torch.cat([logits.exp_().sum(1, keepdim=True), local_target_logit], dim=1)  # (N, 2)
        _all_reduce(sums, dist.ReduceOp.SUM, header.world)
        total, target_logit = sums.split(1, dim=1)
        ctx.save_for_backward(embeddings, centres, target, is_local, logits, total, slope)
        ctx.s = header.s
        return (total.log() - target_logit).mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        embeddings, centres, target, is_local, exponentials, total, slope = ctx.saved_tensors
        scale = grad * ctx.s / len(target)
        gradient = exponentials.mul_(scale / total)  # (N, K); overwriting a saved tensor is safe: backward runs once
        at_target = gradient.gather(1, target)
        gradient.scatter_(1, target, torch.where(is_local, (at_target - scale) * slope, at_target))
        centre_gradient = embeddings.T @ gradient if ctx.needs_input_grad[1] else None
        return gradient @ centres.T, centre_gradient, None, None, None, None


class _GatherRows(torch.autograd.Function):
    """Gathers the rows of all ranks. Backward: sum of all ranks' gradients of these rows, times the rank count."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, world: World) -> Tensor:
        ctx.world = world
        return all_gather_tensor(rows, world)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        grad = grad.clone(memory_format=torch.contiguous_format)
        _all_reduce(grad, dist.ReduceOp.SUM, ctx.world)  # not reduce-scatter: some gloo builds lack it; small anyway
        return grad.chunk(ctx.world.size)[ctx.world.rank] * ctx.world.size, None


class _NormalisedColumns(torch.autograd.Function):
    """Computes F.normalize(kernel[:, columns], dim=0) for distinct columns, or for all columns where `columns` is None.

    A custom backward saves memory and time: it allocates one tensor of the columns' size besides its result, where
    torch needs three; and torch scatters the gradients several times slower, as it cannot know the columns distinct.
    """

    @staticmethod
    def forward(ctx: Any, kernel: Tensor, columns: Tensor | None) -> Tensor:
        selected = kernel if columns is None else kernel[:, columns]  # (D, K)
        lengths = torch.linalg.vector_norm(selected, dim=0).clamp_min_(1e-12)  # (K,)
        normalised = selected / lengths
        ctx.save_for_backward(normalised, lengths, columns)
        ctx.shape = kernel.shape
        return normalised

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        normalised, lengths, columns = ctx.saved_tensors
        radial = (grad * normalised).sum(0)  # the component along each column, which changes only its length
        grad = torch.addcmul(grad, normalised, radial, value=-1).div_(lengths)
        return grad if columns is None else grad.new_zeros(ctx.shape).index_copy_(1, columns, grad), None


def load_full_state_dict(module: ShardedHeader, kernel: Tensor | None) -> None:
    """Loads the full kernel, (in_features, n_classes), given on rank 0; other ranks pass None. Collective.

    The kernel may come from any number of ranks. Raises UserError where its shape does not fit.
    """
    expected = (len(module.kernel), module.n_classes)

    def check() -> None:
        if kernel is None or kernel.shape != expected:
            shape = None if kernel is None else tuple(kernel.shape)
            raise UserError(f"header: kernel is {shape}, should be {expected}", fix="check embedding_size and the data")

    run_on_main(module.world, check)
    scatter_columns(kernel, module.kernel, module.n_classes, module.world)


def _all_reduce(values: Tensor, op: dist.ReduceOp.RedOpType, world: World) -> None:
    """Reduces the values over the ranks in place."""
    if world.size > 1:
        dist.all_reduce(values, op)


def _generator(device: torch.device | str, *numbers: int) -> torch.Generator:
    """Returns a generator seeded by all the numbers together."""
    seed = int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
    return torch.Generator(device).manual_seed(seed)
