"""Architecture search as a task of the training loop: a step of the alphas before each step of the weights."""

import math
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from config.base import Config
from NAS.architect import Architect, freeze_running_statistics, mean_smoothmax
from NAS.cost import expected_multiply_adds, operation_costs
from NAS.data import resize_and_crop
from NAS.report import EpochReport, write_epoch
from NAS.supernet import Supernet
from NAS.val_batches import ValBatches
from utils.datasets.shared_buffers import HostBatch
from utils.datasets.shared_loader import SharedMemoryLoader
from utils.datasets.transforms import normalise
from utils.distributed.data_parallel import unwrap_ddp
from utils.distributed.process_group import World
from utils.errors import UserError
from utils.training.task import Batch, Task


class SearchTask(Task):
    """Trains the weights of the supernet on the training half, and its alphas on the validation half.

    Both losses are cross-entropy.
    """

    export_suffixes = ("supernet.pth",)
    fixed_fields = ("search_space", "n_nodes")  # which the alphas belong to

    def __init__(
        self,
        wrapped: nn.Module,
        val_loader: SharedMemoryLoader,
        samples: dict[str, HostBatch],
        config: Config,
        world: World,
    ) -> None:
        """Sets up the alphas' optimizer and gradient.

        Args:
            wrapped: the supernet, wrapped by `wrap_ddp`, with frozen alphas.
            val_loader: this rank's loader of the validation half.
            samples: at least two images of each half, by name, for the accuracies; empty on other ranks than 0.
            config: a checked config.
            world: this rank.
        """
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
            fused=True,  # its found_inf skips a step without a synchronisation
        )
        normal, reduce = operation_costs(self.net.net)
        self._uniform_cost = float(sum(cost.mean(dim=1).sum() for cost in (*normal, *reduce)))
        if config.cost_weight and not self._uniform_cost:
            raise UserError(
                "config cost_weight: the operations of search_space have no multiply-adds",
                fix="add others, or leave cost_weight at 0",
            )
        self.costs = [cost.to(world.device) for cost in (*normal, *reduce)]
        self.optimizer: torch.optim.Optimizer
        self.beta_weight = 0.0  # of Beta-decay in the current epoch
        self.loaders = (val_loader,)
        self.val_batches = ValBatches(val_loader, config, world)

    def on_train_start(self, optimizer: torch.optim.Optimizer) -> None:
        """Keeps the weights' optimizer, whose momentum and learning rate the unrolled step uses."""
        self.optimizer = optimizer

    def on_epoch_start(self, epoch: int) -> None:
        """Sets the epoch's weight of Beta-decay. Before the first epoch, reads validation batches: collective then.

        Raises UserError on rank 0, and ends the others, if any rank cannot read its batches.
        """
        # Grows linearly, as in the paper, and is constant in epochs after num_epoch.
        self.beta_weight = self.config.beta_decay * min(1.0, epoch / self.config.num_epoch)
        self.val_batches.read_first()

    def augment(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Returns random crops of the enlarged images, (B, 112, 112, 3) uint8 as the input."""
        return resize_and_crop(images, generator)

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """Steps the alphas, then returns the losses of the weights' step.

        "Loss" is that of the weights, "AlphaLoss" that of the alphas before their step, and "Cost" the expected cost of
        the cells in millions of multiply-adds. A step of the alphas with a non-finite gradient is skipped. AlphaLoss is
        then NaN, so that the weights' step is skipped, counted and reported too.
        """
        val_loss = self._step_alphas((batch.images, batch.labels))
        loss = F.cross_entropy(self.backbone(batch.images), batch.labels)
        with torch.no_grad():
            cost = self._expected_cost()
        return {"Loss": loss, "AlphaLoss": val_loss, "Cost": cost}

    def _step_alphas(self, train: tuple[Tensor, Tensor]) -> Tensor:
        """Steps the alphas and returns the validation loss before it, NaN for a skipped step. Collective."""
        xi = self.optimizer.param_groups[0]["lr"]
        gradients, loss = self.architect.gradient(train, self.val_batches.next(), xi, self.optimizer)
        if self.config.cost_weight or self.beta_weight:
            with self.architect.enable_alpha_grad():
                penalty_gradients = torch.autograd.grad(self._penalty(), self.net.alphas())
            gradients = [a + b for a, b in zip(gradients, penalty_gradients, strict=True)]
        for alpha, gradient in zip(self.net.alphas(), gradients, strict=True):
            alpha.grad = gradient
        norm = nn.utils.get_total_norm(gradients)
        is_nonfinite = ~torch.isfinite(norm)
        self.alpha_optimizer.found_inf = is_nonfinite.float()  # type: ignore[attr-defined]
        self.alpha_optimizer.step()
        self.alpha_optimizer.zero_grad(set_to_none=True)
        return torch.where(is_nonfinite, torch.nan, loss)

    def _penalty(self) -> Tensor:
        """Returns what the alpha loss has besides the cross-entropy, a differentiable scalar: cost and Beta-decay."""
        penalty = self.beta_weight * mean_smoothmax(self.net.alphas())
        if self.config.cost_weight:
            penalty = penalty + self._expected_cost() * (self.config.cost_weight / self._uniform_cost)
        return penalty

    def _expected_cost(self) -> Tensor:
        """Returns the expected cost of all cells in millions of multiply-adds, a differentiable scalar."""
        normal, reduce = self.net.edge_weights()
        return expected_multiply_adds([*normal, *reduce], self.costs)

    def exported_modules(self, step: int) -> dict[str, nn.Module]:
        """Returns the supernet with its alphas, to be saved as {step}supernet.pth."""
        return {f"{step}supernet.pth": self.net}

    def state_dict(self) -> dict[str, Any]:
        """Returns the state of the alphas' optimizer, and the position in the validation half."""
        return {"alpha_optimizer": self.alpha_optimizer.state_dict(), "val": [*self.val_batches.position]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores a `state_dict`."""
        self.alpha_optimizer.load_state_dict(state["alpha_optimizer"])
        self.val_batches.position = tuple(state["val"])

    def on_epoch_end(self, epoch: int, step: int) -> None:
        """Reports the state of the search on rank 0. Collective: raises RuntimeError if the alphas of ranks differ."""
        self._check_alphas()
        if not self.world.is_main:
            return
        limit = self.config.skip_limit
        genotype = self.net.genotype(None if limit < 0 else limit)
        normal, reduce = ([w.detach().cpu().numpy() for w in kind] for kind in self.net.edge_weights())
        with torch.no_grad():
            cost = float(self._expected_cost())
        kinds = {"normal": self.net.alpha_normal, "reduce": self.net.alpha_reduce}
        alphas = {name: [alpha.detach().cpu().numpy() for alpha in kind] for name, kind in kinds.items()}
        report = EpochReport(
            epoch, step, genotype, self.net.operations, alphas, normal, reduce, cost, self._accuracies(genotype)
        )
        write_epoch(Path(self.config.output), report)

    def _check_alphas(self) -> None:
        """Raises RuntimeError if the alphas differ from those of rank 0. Collective."""
        if self.world.size == 1:
            return
        alphas = torch.cat([alpha.detach().flatten() for alpha in self.net.alphas()])
        main_alphas = alphas.clone()
        dist.broadcast(main_alphas, 0)
        if not torch.equal(alphas, main_alphas):
            raise RuntimeError(f"the alphas of rank {self.world.rank} differ from those of rank 0")

    @torch.no_grad()
    def _accuracies(self, genotype: object) -> dict[str, float]:
        """Returns the top-1 accuracy of the supernet and of the derived network on the samples of both halves.

        The derived network has the weights of the supernet. Batch norms use the statistics of the batch, as in the
        search, because the derived network has no running statistics of its own.
        """
        accuracies: dict[str, float] = {}
        with freeze_running_statistics(self.net):
            for name, sample in self.samples.items():
                # Parts of equal size, at least two images each: batch norm needs a variance.
                n = len(sample.labels)
                parts = min(math.ceil(n / self.config.batch_size), n // 2)
                batches = list(zip(sample.images.tensor_split(parts), sample.labels.tensor_split(parts), strict=True))
                for kind, cells in (("supernet", None), ("derived", genotype)):
                    correct = 0
                    for images, labels in batches:
                        logits = self.net(normalise(images.to(self.world.device)), cells)
                        correct += int((logits.argmax(1).cpu() == labels).sum())
                    accuracies[f"{kind}_{name}"] = correct / n
        return accuracies
