"""The ArcFace header with its classes split over the processes: for more of them than one device can hold.

Each rank keeps a contiguous share of the kernel's columns, and of the logits only those of its columns. What crosses
between ranks for a batch of N images: their embeddings (N, D) and their gradient, labels (N,), and two sums and a
maximum of each image. By plain collectives, written out: DTensor's loss_parallel knows no margin on a label's logit,
no sampled classes, and wants its own mesh of processes; torch.distributed.nn.functional is deprecated.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from utils.distributed.collectives import run_on_main, shard_slice
from utils.distributed.process_group import World
from utils.errors import UserError
from utils.losses.arcface import add_angular_margin

_PIECE = 1 << 16  # columns drawn, sent or received at once: 32 MiB of 128 float32 each


class ShardedArcFace(nn.Module):
    """The loss of ArcFace over the images of all processes, from this process's share of the classes.

    Not for DistributedDataParallel: `kernel` is another on every rank, and its gradient is whole as it stands. The
    embeddings' gradient is that of the loss times the number of ranks, for DDP averages the backbone's over them.
    Every rank brings as many images. Always float32.

    With sample_rate below 1, Partial FC (arXiv 2203.15565): of its columns a rank takes those of the batch's classes
    and, up to sample_rate of all, others at random; only they take part in the softmax. The draw follows from seed,
    rank and step, and from nothing else. The gradient is dense, 0 in columns left out: SGD goes on moving these by
    momentum and weight decay, where the Partial FC of InsightFace lets them rest.
    """

    def __init__(
        self,
        in_features: int,
        n_classes: int,
        s: float,
        m: float,
        world: World,
        sample_rate: float = 1.0,
        seed: int = 0,
    ) -> None:
        """in_features: the embedding's size; seed: of the draws, and of the kernel, the same on any number of ranks."""
        super().__init__()
        if n_classes < world.size:
            raise UserError(f"head: {n_classes} classes cannot be split over {world.size} processes; use fewer")
        if not 0 < sample_rate <= 1:
            raise UserError(f"sample_rate: should be above 0 and at most 1, is {sample_rate}")
        self.n_classes, self.s, self.m = n_classes, s, m
        self.world, self.sample_rate, self.seed = world, sample_rate, seed
        self.class_slice = shard_slice(n_classes, world)
        self.step = 0
        self.kernel = nn.Parameter(
            torch.empty(in_features, self.class_slice.stop - self.class_slice.start, device=world.device)
        )
        with torch.no_grad():
            self._draw_kernel()

    def _draw_kernel(self) -> None:
        """Normal numbers, std 0.01, piece by piece of the whole kernel so that no rank draws much of another's."""
        start, stop = self.class_slice.start, self.class_slice.stop
        for piece in range(start // _PIECE, -(-stop // _PIECE)):
            first = piece * _PIECE
            width = min(_PIECE, self.n_classes - first)
            drawn = torch.randn(len(self.kernel), width, generator=_generator("cpu", self.seed, piece)) * 0.01
            left, right = max(start, first), min(stop, first + width)
            self.kernel[:, left - start : right - start] = drawn[:, left - first : right - first]

    def set_step(self, step: int) -> None:
        """The step whose draw comes next; it counts on by itself from there."""
        self.step = step

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """(B, in_features), (B,) int64 of this rank -> the mean loss over all ranks' images, the same on each."""
        with torch.autocast(embeddings.device.type, enabled=False):
            embeddings = F.normalize(embeddings.float(), dim=1)
            if self.world.size > 1:
                embeddings, labels = _GatherRows.apply(embeddings, self.world), _gather(labels, self.world)
            own = labels - self.class_slice.start  # (N,) the column of each image's class
            here = (own >= 0) & (own < self.kernel.shape[1])  # or another rank's
            sampled = None
            if self.sample_rate < 1:
                sampled = self.sample(own, here)  # (K,)
                own = torch.searchsorted(sampled, own)
            centres = _Directions.apply(self.kernel, sampled)  # (D, K)
            return _Loss.apply(embeddings, centres, own.clamp(0, centres.shape[1] - 1), here, self)

    def sample(self, own: Tensor, here: Tensor) -> Tensor:
        """The columns that take part in this step, ascending: those of `own` that are here, and others at random."""
        columns = self.kernel.shape[1]
        generator = _generator(own.device, self.seed, self.world.rank, self.step, 1)
        self.step += 1
        # What is another rank's marks a column too many, which is cut off.
        needed = torch.zeros(columns + 1, dtype=torch.bool, device=own.device)
        needed = needed.index_fill_(0, torch.where(here, own, columns), True)[:-1]
        count = max(1, round(self.sample_rate * columns))
        if count < len(own):  # perhaps too few; only then does the host wait for the device, to know
            count = max(count, int(needed.sum()))
        order = torch.rand(columns, generator=generator, device=own.device).masked_fill_(needed, 2.0)
        return order.topk(count, sorted=False).indices.sort().values


class _Loss(torch.autograd.Function):
    """Cross-entropy over the columns of all ranks. One tensor as large as the logits, which becomes their gradient."""

    @staticmethod
    def forward(
        ctx: Any, embeddings: Tensor, centres: Tensor, own: Tensor, here: Tensor, header: ShardedArcFace
    ) -> Tensor:
        """(N, D) and (D, K) of length 1; (N,) the column of the image's class, where it is here -> scalar."""
        own, here = own[:, None], here[:, None]  # (N, 1)
        logits = embeddings @ centres  # (N, K), cosines as yet
        cosine = logits.gather(1, own)
        with torch.enable_grad():
            shifted = add_angular_margin(cosine.requires_grad_(), header.m)
            (slope,) = torch.autograd.grad(shifted.sum(), cosine)
        logits.scatter_(1, own, torch.where(here, shifted, cosine).detach()).mul_(header.s)
        highest = logits.amax(1, keepdim=True)
        _all_reduce(highest, dist.ReduceOp.MAX, header.world)
        logits.sub_(highest)
        targets = torch.where(here, logits.gather(1, own), 0.0)
        sums = torch.cat([logits.exp_().sum(1, keepdim=True), targets], dim=1)  # (N, 2)
        _all_reduce(sums, dist.ReduceOp.SUM, header.world)
        total, target = sums.split(1, dim=1)
        ctx.save_for_backward(embeddings, centres, own, here, logits, total, slope)
        ctx.s = header.s
        return (total.log() - target).mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        embeddings, centres, own, here, exponentials, total, slope = ctx.saved_tensors
        scale = grad * ctx.s / len(own)
        gradient = exponentials.mul_(scale / total)  # (N, K); saved tensors may be overwritten: it runs once
        at_own = gradient.gather(1, own)
        gradient.scatter_(1, own, torch.where(here, (at_own - scale) * slope, at_own))
        return gradient @ centres.T, embeddings.T @ gradient, None, None, None


class _GatherRows(torch.autograd.Function):
    """Every rank's rows. Backward: the ranks' gradients of this rank's rows, summed, times the number of ranks."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, world: World) -> Tensor:
        ctx.world = world
        return _gather(rows, world)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        grad = grad.clone(memory_format=torch.contiguous_format)
        _all_reduce(grad, dist.ReduceOp.SUM, ctx.world)  # not reduce-scatter, which not every gloo has: it is small
        return grad.chunk(ctx.world.size)[ctx.world.rank] * ctx.world.size, None


class _Directions(torch.autograd.Function):
    """F.normalize(kernel[:, columns], dim=0), no column twice; all columns by None.

    Written out for what its backward costs: one tensor as large as the columns beside its result, where torch needs
    three; and torch, not knowing that no column comes twice, takes several times as long to put gradients in place.
    """

    @staticmethod
    def forward(ctx: Any, kernel: Tensor, columns: Tensor | None) -> Tensor:
        taken = kernel if columns is None else kernel[:, columns]  # (D, K)
        lengths = torch.linalg.vector_norm(taken, dim=0).clamp_min_(1e-12)  # (K,)
        directions = taken / lengths
        ctx.save_for_backward(directions, lengths, columns)
        ctx.shape = kernel.shape
        return directions

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        directions, lengths, columns = ctx.saved_tensors
        along = (grad * directions).sum(0)  # what would change a column's length alone
        grad = torch.addcmul(grad, directions, along, value=-1).div_(lengths)
        return grad if columns is None else grad.new_zeros(ctx.shape).index_copy_(1, columns, grad), None


def full_state_dict(module: ShardedArcFace) -> dict[str, Tensor] | None:
    """{"kernel": (in_features, n_classes)}, as ArcFace's, on the CPU of rank 0; None elsewhere. By all ranks."""
    kernel = gather_columns(module.kernel, module.n_classes, module.world)
    return None if kernel is None else {"kernel": kernel}


def load_full(module: ShardedArcFace, kernel: Tensor | None) -> None:
    """Takes rank 0's whole kernel; from the others None. By all ranks, any number of them."""
    expected = (len(module.kernel), module.n_classes)

    def check() -> None:
        if kernel is None or kernel.shape != expected:
            shape = None if kernel is None else tuple(kernel.shape)
            raise UserError(f"header: kernel is {shape}, should be {expected}; check embedding_size and the data")

    run_on_main(module.world, check)
    scatter_columns(kernel, module.kernel, module.n_classes, module.world)


@torch.no_grad()
def gather_columns(shard: Tensor, n_classes: int, world: World) -> Tensor | None:
    """The ranks' shards (D, share of n_classes) side by side on the CPU of rank 0, None elsewhere. By all ranks."""
    whole = torch.empty(len(shard), n_classes, dtype=shard.dtype) if world.is_main else None
    for rank, of_whole, of_shard in _pieces(n_classes, world):
        if whole is not None:
            whole[:, of_whole] = shard[:, of_shard] if rank == 0 else _received(shard, of_shard, rank)
        elif rank == world.rank:
            dist.send(shard[:, of_shard].contiguous(), 0)
    return whole


@torch.no_grad()
def scatter_columns(whole: Tensor | None, shard: Tensor, n_classes: int, world: World) -> Tensor:
    """Fills the ranks' shards (D, share of n_classes) from rank 0's whole, and returns this one's. By all ranks."""
    for rank, of_whole, of_shard in _pieces(n_classes, world):
        if world.is_main and whole is not None:
            piece = whole[:, of_whole].to(shard.device, shard.dtype).contiguous()
            if rank == 0:
                shard[:, of_shard] = piece
            else:
                dist.send(piece, rank)
        elif rank == world.rank:
            shard[:, of_shard] = _received(shard, of_shard, 0)
    return shard


def _received(like: Tensor, columns: slice, sender: int) -> Tensor:
    """As many columns, of the same height, from another rank."""
    piece = like.new_empty(len(like), columns.stop - columns.start)
    dist.recv(piece, sender)
    return piece


def _pieces(n_classes: int, world: World) -> Iterator[tuple[int, slice, slice]]:
    """All columns in order: the rank that holds them, their place in the whole, their place in its shard."""
    for rank in range(world.size):
        share = shard_slice(n_classes, replace(world, rank=rank))
        for start in range(share.start, share.stop, _PIECE):
            stop = min(start + _PIECE, share.stop)
            yield rank, slice(start, stop), slice(start - share.start, stop - share.start)


def _gather(rows: Tensor, world: World) -> Tensor:
    """Every rank's (B, …) rows one after another, on every rank: (N, …)."""
    parts = [torch.empty_like(rows) for _ in range(world.size)]
    dist.all_gather(parts, rows.contiguous())
    return torch.cat(parts)


def _all_reduce(values: Tensor, op: dist.ReduceOp.RedOpType, world: World) -> None:
    """Reduces in place over the ranks."""
    if world.size > 1:
        dist.all_reduce(values, op)


def _generator(device: torch.device | str, *numbers: int) -> torch.Generator:
    """A generator seeded from all the numbers."""
    seed = int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
    return torch.Generator(device).manual_seed(seed)
