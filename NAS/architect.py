"""The alphas' gradient of the bilevel search (DARTS, arXiv 1806.09055, Section 2.3).

Alphas a are to lower the validation loss of the weights w*(a) that training would reach with them. One step of training
stands for all of it (equation 6): w' = w - xi * (momentum * v + grad_w L_train(w, a) + weight_decay * w). Then

    grad_a L_val(w', a) - xi * grad_a,w L_train(w, a) * grad_w' L_val(w', a)          (equation 7)

and the product with the second derivative is a finite difference (equation 8): with g = grad_w' L_val(w', a),

    [grad_a L_train(w + eps * g, a) - grad_a L_train(w - eps * g, a)] / (2 * eps),   eps = 0.01 / |g|.

First order is xi = 0: grad_a L_val(w, a). Four forward-backward passes against one; nothing is copied but the weights
themselves, which are moved in place and put back.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from NAS.supernet import Supernet
from utils.distributed.collectives import all_reduce_mean
from utils.distributed.process_group import World, autocast

ALPHA_GRADIENTS = ("validation", "published")
EPSILON = 0.01  # the paper's: of the finite difference, relative to the gradient's norm


@dataclass
class Architect:
    """Gives the alphas their gradient.

    second_order: through the unrolled step; else xi = 0. momentum, weight_decay: of the weights' SGD. alpha_gradient:
    "validation" as in DARTS; "published" adds grad_a L_train(w, a) to it, as the published code does by leaving the
    training step's gradient on the alphas. With several processes every gradient is the mean of theirs, so that alphas
    and unrolled weights are the same on all.
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
        """The gradient of each alpha, and the validation loss; weights, buffers and .grad are as before.

        train, val: images (B, 3, 112, 112) and labels (B,). xi: the learning rate of the step.
        """
        alphas, weights = self.net.alphas(), self.net.weights()
        with running_statistics_kept(self.net), self.alphas_learn():
            train_alpha: list[Tensor] = []
            saved: list[Tensor] = []
            if self.second_order or self.alpha_gradient == "published":
                grads = self._grads(train, [*weights, *alphas] if self.alpha_gradient == "published" else weights)
                train_alpha = grads[len(weights) :]
            if not self.second_order:
                loss, of_alphas = self._loss_and_grads(val, alphas)
            else:
                saved = [w.detach().clone() for w in weights]
                self._step(weights, grads[: len(weights)], xi, optimizer)
                loss, of_all = self._loss_and_grads(val, [*alphas, *weights])
                of_alphas, direction = of_all[: len(alphas)], of_all[len(alphas) :]
                hessian = self._hessian_product(train, alphas, weights, saved, direction)
                of_alphas = [a - xi * h for a, h in zip(of_alphas, hessian, strict=True)]
        if train_alpha:
            of_alphas = [a + t for a, t in zip(of_alphas, train_alpha, strict=True)]
        return of_alphas, loss

    @contextmanager
    def alphas_learn(self) -> Iterator[None]:
        """Alphas take part in gradients only here: steps of the weights do without, and DDP does not know them."""
        for alpha in self.net.alphas():
            alpha.requires_grad_(True)
        try:
            yield
        finally:
            for alpha in self.net.alphas():
                alpha.requires_grad_(False)

    @torch.no_grad()
    def _step(self, weights: list, grads: list[Tensor], xi: float, optimizer: torch.optim.Optimizer) -> None:
        """w' in place of w."""
        for w, grad in zip(weights, grads, strict=True):
            velocity = optimizer.state[w].get("momentum_buffer")
            step = grad.add(w, alpha=self.weight_decay)
            w.sub_(step if velocity is None else step.add_(velocity, alpha=self.momentum), alpha=xi)

    def _hessian_product(
        self, train: tuple[Tensor, Tensor], alphas: list, weights: list, saved: list[Tensor], direction: list[Tensor]
    ) -> list[Tensor]:
        """The finite difference; w is back in its place after it."""
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(direction)))
        epsilon = EPSILON / norm.clamp_min(1e-12)  # a gradient of zeros moves nothing
        moved: list[list[Tensor]] = []
        shift = torch._foreach_mul(direction, epsilon)
        # In float32 whatever the run's precision: bfloat16 leaves little of the difference of two passes so near each
        # other. In small supernets that had learned for some steps, the cosine of this product to that of float32 was
        # 0.5 to 0.9; with these passes alone in float32, 0.97 and more.
        with autocast(self.world, "fp32"):
            for sign in (1, -1):
                with torch.no_grad():
                    torch._foreach_copy_(weights, saved)
                    torch._foreach_add_(weights, shift, alpha=sign)
                moved.append(self._grads(train, alphas))
        with torch.no_grad():
            torch._foreach_copy_(weights, saved)
        difference = torch._foreach_sub(moved[0], moved[1])
        return list(torch._foreach_div(difference, 2 * epsilon))

    def _grads(self, batch: tuple[Tensor, Tensor], parameters: list) -> list[Tensor]:
        return self._loss_and_grads(batch, parameters)[1]

    def _loss_and_grads(self, batch: tuple[Tensor, Tensor], parameters: list) -> tuple[Tensor, list[Tensor]]:
        images, labels = batch
        loss = F.cross_entropy(self.net(images), labels)
        gradients = torch.autograd.grad(loss, parameters)
        if self.world.size > 1:
            flat = all_reduce_mean(torch.cat([gradient.flatten() for gradient in gradients]), self.world)
            parts = flat.split([gradient.numel() for gradient in gradients])
            return loss.detach(), [part.view_as(g) for part, g in zip(parts, gradients, strict=True)]
        return loss.detach(), list(gradients)


@contextmanager
def running_statistics_kept(module: nn.Module) -> Iterator[None]:
    """Batch norms normalise by the batch, as in training, and leave their running statistics alone."""
    norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d) and part.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
