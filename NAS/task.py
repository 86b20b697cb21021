"""The search as a task of the training loop: before each step of the weights, one of the alphas."""

import math
from collections import deque
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from easydict import EasyDict
from torch import Tensor, nn

from NAS.architect import Architect, running_statistics_kept
from NAS.cost import expected, operation_costs
from NAS.data import resize_and_crop
from NAS.report import EpochReport, write_epoch
from NAS.supernet import Supernet
from utils.datasets.shared_buffers import LOOKAHEAD, HostBatch
from utils.datasets.shared_loader import Loader
from utils.datasets.transforms import normalise
from utils.distributed.collectives import run_on_all
from utils.distributed.process_group import World, to_device_async, unwrap_ddp
from utils.errors import UserError
from utils.training.task import Batch, Task


class ValBatch(NamedTuple):
    """A batch of the validation half on the device, and where the half is after it."""

    images: Tensor  # (B, 3, 112, 112), as they are
    labels: Tensor  # (B,)
    epoch: int
    samples_seen: int  # images of the epoch that all processes have taken


class SearchTask(Task):
    """Cross-entropy of the supernet on the training half; the alphas learn from the validation half."""

    suffixes = ("supernet.pth",)

    def __init__(
        self, wrapped: nn.Module, val_loader: Loader, samples: dict[str, HostBatch], config: EasyDict, world: World
    ) -> None:
        """wrapped: the supernet, perhaps in DDP, its alphas frozen. samples: two or more images of each half, to be
        measured on."""
        super().__init__(wrapped, nn.Module())
        self.net: Supernet = unwrap_ddp(wrapped)  # type: ignore[assignment]
        self.config = config
        self.world = world
        self.samples = samples
        self.architect = Architect(
            self.net, config.momentum, config.weight_decay, world, config.second_order, config.alpha_gradient
        )
        self.alpha_optimizer = torch.optim.Adam(
            self.net.alphas(),
            lr=config.alpha_lr,
            betas=tuple(config.alpha_betas),  # type: ignore[arg-type]
            weight_decay=config.alpha_weight_decay,
            fused=True,  # leaves a step out at a word from the device
        )
        normal, reduce = operation_costs(self.net.net)
        self.costs = [cost.to(world.device) for cost in (*normal, *reduce)]
        self.cost_of_equals = float(sum(cost.mean(dim=1).sum() for cost in self.costs))
        self.optimizer: torch.optim.Optimizer
        self.val_epoch = self.val_seen = 0  # of the validation half, after the last batch that was used
        self.loaders = (val_loader,)
        self._val_batches = self._endless(val_loader)
        self._waiting: deque[ValBatch] = deque()

    def on_train_start(self, optimizer: torch.optim.Optimizer) -> None:
        """The weights' optimizer, whose momentum and learning rate the unrolled step takes."""
        self.optimizer = optimizer

    def on_epoch_start(self, epoch: int) -> None:
        """Before the first of all, reads the first validation batches. Raises UserError on every process where one of
        them cannot."""
        if not self._waiting:
            run_on_all(self.world, self._read_first)

    def augment(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Enlarged, and cut at random."""
        return resize_and_crop(images, generator)

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """{"Loss": of the weights, "AlphaLoss": validation, "Cost": expected M multiply-adds of the cells}.

        The alphas' step, done first, is another than the weights', and left out by its own gradient: AlphaLoss is then
        NaN, by which the weights' step is left out, counted and told too.
        """
        val_loss = self._step_alphas((batch.images, batch.labels))
        loss = F.cross_entropy(self.backbone(batch.images), batch.labels)
        with torch.no_grad():
            cost = self._expected_cost()
        return {"Loss": loss, "AlphaLoss": val_loss, "Cost": cost}

    def _step_alphas(self, train: tuple[Tensor, Tensor]) -> Tensor:
        xi = self.optimizer.param_groups[0]["lr"]
        gradients, loss = self.architect.gradient(train, self._next_val(), xi, self.optimizer)
        if self.config.cost_weight:
            with self.architect.alphas_learn():
                relative = self._expected_cost() * (self.config.cost_weight / self.cost_of_equals)
                of_cost = torch.autograd.grad(relative, self.net.alphas())
            gradients = [a + b for a, b in zip(gradients, of_cost, strict=True)]
        for alpha, gradient in zip(self.net.alphas(), gradients, strict=True):
            alpha.grad = gradient
        norm = nn.utils.get_total_norm(gradients)
        bad = ~torch.isfinite(norm)
        self.alpha_optimizer.found_inf = bad.float()  # type: ignore[attr-defined]
        self.alpha_optimizer.step()
        self.alpha_optimizer.zero_grad(set_to_none=True)
        return torch.where(bad, torch.nan, loss)

    def _expected_cost(self) -> Tensor:
        normal, reduce = self.net.edge_weights()
        return expected([*normal, *reduce], self.costs)

    def _next_val(self) -> tuple[Tensor, Tensor]:
        batch = self._waiting.popleft()
        self._read_ahead()
        self.val_epoch, self.val_seen = batch.epoch, batch.samples_seen
        return batch.images, batch.labels

    def _read_first(self) -> None:
        self._read_ahead()
        (loader,) = self.loaders
        if len(self._waiting) < LOOKAHEAD and loader.failure:
            loader.raise_failure()

    def _read_ahead(self) -> None:
        """Reads validation batches until AHEAD are waiting: the steps that are left when all processes learn that no
        more can be read, also where an epoch of the half begins, at whose first batches the loader fails at once."""
        try:
            self._waiting.extend(islice(self._val_batches, LOOKAHEAD - len(self._waiting)))
        except (UserError, RuntimeError) as error:
            self.loaders[0].failure = error.with_traceback(None)

    def _endless(self, loader: Loader) -> Iterator[ValBatch]:
        """Batches of the validation half, epoch after epoch."""
        epoch, seen = self.val_epoch, self.val_seen
        while True:
            for decoded in loader.epoch(epoch, seen):
                seen += self.config.batch_size * self.world.size
                images = normalise(to_device_async(decoded.images, self.world.device))
                # A copy also on the CPU: the loader's memory has another batch before this one is used.
                yield ValBatch(images, to_device_async(decoded.labels, self.world.device).clone(), epoch, seen)
            epoch, seen = epoch + 1, 0

    def exported_modules(self, step: int) -> dict[str, nn.Module]:
        """{step}supernet.pth, alphas included."""
        return {f"{step}supernet.pth": self.net}

    def state_dict(self) -> dict[str, Any]:
        """The alphas' optimizer, and where in the validation half they are."""
        return {"alpha_optimizer": self.alpha_optimizer.state_dict(), "val": [self.val_epoch, self.val_seen]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a `state`."""
        self.alpha_optimizer.load_state_dict(state["alpha_optimizer"])
        self.val_epoch, self.val_seen = state["val"]

    def on_epoch_end(self, epoch: int, step: int) -> None:
        """Says and draws what the alphas are now. Raises RuntimeError where the processes' alphas are not the same."""
        self._check_alphas()
        if not self.world.is_main:
            return
        limit = self.config.skip_limit
        genotype = self.net.genotype(None if limit < 0 else limit)
        normal, reduce = ([w.detach().cpu().numpy() for w in kind] for kind in self.net.edge_weights())
        with torch.no_grad():
            cost = float(self._expected_cost())
        report = EpochReport(epoch, step, genotype, normal, reduce, cost, self._accuracies(genotype))
        write_epoch(Path(self.config.output), report)

    def _check_alphas(self) -> None:
        if self.world.size == 1:
            return
        mine = torch.cat([alpha.detach().flatten() for alpha in self.net.alphas()])
        firsts = mine.clone()
        dist.broadcast(firsts, 0)
        if not torch.equal(mine, firsts):
            raise RuntimeError(f"the alphas of process {self.world.rank} are not those of the first")

    @torch.no_grad()
    def _accuracies(self, genotype: object) -> dict[str, float]:
        """Top-1 of the supernet on samples of both halves, and of the derived network with the same weights.

        Batch norms take the statistics of the batch, as while searching: the derived network has no others.
        """
        found: dict[str, float] = {}
        with running_statistics_kept(self.net):
            for name, sample in self.samples.items():
                # Equal parts, none of one image: batch norm has no variance of it.
                n = len(sample.labels)
                parts = min(math.ceil(n / self.config.batch_size), n // 2)
                batches = list(zip(sample.images.tensor_split(parts), sample.labels.tensor_split(parts), strict=True))
                for kind, cells in (("supernet", None), ("derived", genotype)):
                    right = 0
                    for images, labels in batches:
                        logits = self.net(normalise(images.to(self.world.device)), cells)
                        right += int((logits.argmax(1).cpu() == labels).sum())
                    found[f"{kind}_{name}"] = right / n
        return found
