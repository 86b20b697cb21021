"""Gradient of the alphas in the bilevel architecture search (DARTS, arXiv 1806.09055, Section 2.3).

The alphas a minimise the validation loss of the weights w*(a), to which training with them would converge. One training
step approximates w*(a) (equation 6): w' = w - xi * (momentum * v + grad_w L_train(w, a) + weight_decay * w). The
gradient is

    grad_a L_val(w', a) - xi * grad_a,w L_train(w, a) * grad_w' L_val(w', a)          (equation 7)

A finite difference approximates the second-order product (equation 8). With g = grad_w' L_val(w', a), it is

    [grad_a L_train(w + eps * g, a) - grad_a L_train(w - eps * g, a)] / (2 * eps),   eps = 0.01 / |g|.

First order means xi = 0: grad_a L_val(w, a), with one forward-backward pass instead of four. Only the weights are
copied: they are changed in place and restored.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from NAS.supernet import Supernet
from utils.distributed.collectives import all_reduce_mean
from utils.distributed.process_group import World, autocast

ALPHA_GRADIENTS = ("validation", "published")
EPSILON = 0.01  # eps · |g| of the finite difference, as in the paper


@dataclass
class Architect:
    """Computes the gradient of the alphas.

    Gradients are averaged over all ranks, so that alphas and unrolled weights are the same on all of them.

    Args:
        net: the supernet, not wrapped.
        momentum: momentum of the weights' SGD.
        weight_decay: weight decay of the weights' SGD.
        world: the ranks to average over.
        second_order: differentiates through the unrolled step; otherwise xi = 0.
        alpha_gradient: "validation" as in DARTS; "published" adds grad_a L_train(w, a), as the published code does by
            leaving the gradient of the training step on the alphas.
    """

    net: Supernet
    momentum: float
    weight_decay: float
    world: World
    second_order: bool = True
    alpha_gradient: str = "validation"

    def gradient(
        self, train: tuple[Tensor, Tensor], val: tuple[Tensor, Tensor], xi: float, optimizer: torch.optim.Optimizer
    ) -> tuple[list[Tensor], Tensor]:
        """Returns the gradient of each alpha, and the validation loss. Weights, buffers and .grad are unchanged.

        Collective. The loss is that of this rank, detached.

        train, val: images (B, 3, 112, 112) and labels (B,). xi: the learning rate of the unrolled step. optimizer: the
        weights' SGD, whose momentum the step uses.
        """
        alphas, weights = self.net.alphas(), self.net.weights()
        with freeze_running_statistics(self.net), self.enable_alpha_grad():
            train_alpha_grads: list[Tensor] = []
            saved: list[Tensor] = []
            if self.second_order or self.alpha_gradient == "published":
                grads = self._grads(train, [*weights, *alphas] if self.alpha_gradient == "published" else weights)
                train_alpha_grads = grads[len(weights) :]
            if not self.second_order:
                loss, alpha_grads = self._loss_and_grads(val, alphas)
            else:
                saved = [w.detach().clone() for w in weights]
                self._step(weights, grads[: len(weights)], xi, optimizer)
                loss, val_grads = self._loss_and_grads(val, [*alphas, *weights])
                alpha_grads, direction = val_grads[: len(alphas)], val_grads[len(alphas) :]
                hessian = self._hessian_product(train, alphas, weights, saved, direction)
                alpha_grads = [a - xi * h for a, h in zip(alpha_grads, hessian, strict=True)]
        if train_alpha_grads:
            alpha_grads = [a + t for a, t in zip(alpha_grads, train_alpha_grads, strict=True)]
        return alpha_grads, loss

    @contextmanager
    def enable_alpha_grad(self) -> Iterator[None]:
        """Enables gradients of the alphas in the block. In weight steps they have none."""
        for alpha in self.net.alphas():
            alpha.requires_grad_(True)
        try:
            yield
        finally:
            for alpha in self.net.alphas():
                alpha.requires_grad_(False)

    @torch.no_grad()
    def _step(self, weights: list, grads: list[Tensor], xi: float, optimizer: torch.optim.Optimizer) -> None:
        """Replaces w by w', in place."""
        for w, grad in zip(weights, grads, strict=True):
            velocity = optimizer.state[w].get("momentum_buffer")
            step = grad.add(w, alpha=self.weight_decay)
            w.sub_(step if velocity is None else step.add_(velocity, alpha=self.momentum), alpha=xi)

    def _hessian_product(
        self, train: tuple[Tensor, Tensor], alphas: list, weights: list, saved: list[Tensor], direction: list[Tensor]
    ) -> list[Tensor]:
        """Returns the finite difference of equation 8, and restores w from `saved`."""
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(direction)))
        epsilon = EPSILON / norm.clamp_min(1e-12)  # a zero gradient gives no shift
        shifted_grads: list[list[Tensor]] = []
        shift = torch._foreach_mul(direction, epsilon)
        # Always in float32, without TF32: the two passes are so close that bfloat16 loses most of their difference. In
        # small supernets after some training steps, the cosine similarity of this product to the one in float32 was 0.5
        # to 0.9. With only these two passes in float32 it was at least 0.97.
        with autocast(self.world, "fp32"):
            for sign in (1, -1):
                with torch.no_grad():
                    torch._foreach_copy_(weights, saved)
                    torch._foreach_add_(weights, shift, alpha=sign)
                shifted_grads.append(self._grads(train, alphas))
        with torch.no_grad():
            torch._foreach_copy_(weights, saved)
        difference = torch._foreach_sub(shifted_grads[0], shifted_grads[1])
        return list(torch._foreach_div(difference, 2 * epsilon))

    def _grads(self, batch: tuple[Tensor, Tensor], parameters: list) -> list[Tensor]:
        return self._loss_and_grads(batch, parameters)[1]

    def _loss_and_grads(self, batch: tuple[Tensor, Tensor], parameters: list) -> tuple[Tensor, list[Tensor]]:
        """Returns the loss of this rank, and its gradients averaged over all ranks. Collective."""
        images, labels = batch
        loss = F.cross_entropy(self.net(images), labels)
        gradients = torch.autograd.grad(loss, parameters)
        if self.world.size > 1:
            flat = all_reduce_mean(torch.cat([gradient.flatten() for gradient in gradients]), self.world)
            parts = flat.split([gradient.numel() for gradient in gradients])
            return loss.detach(), [part.view_as(g) for part, g in zip(parts, gradients, strict=True)]
        return loss.detach(), list(gradients)


def mean_smoothmax(alphas: Sequence[Tensor]) -> Tensor:
    """Returns the log-sum-exp of an edge's alphas, mean over all edges, a scalar: the loss of Beta-decay.

    It pulls down each alpha in proportion to its softmax, which keeps them even. (Beta-DARTS, arXiv 2203.01665.)
    alphas: (edges, operations) each.
    """
    return torch.logsumexp(torch.cat(list(alphas)), dim=1).mean()


@contextmanager
def freeze_running_statistics(module: nn.Module) -> Iterator[None]:
    """Makes batch norms use the statistics of the batch in the block, without updating their running statistics."""
    norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d) and part.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
