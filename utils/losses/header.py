"""The header: class centres, the cosine of an embedding to each of them, and the loss."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config.base import Config
from utils.distributed.collectives import all_gather_tensor
from utils.distributed.data_parallel import wrap_ddp
from utils.distributed.process_group import World, to_device
from utils.losses.margin import Margin, embedding_norms
from utils.losses.partial_fc import ShardedHeader
from utils.registry import LOSSES, load_entry


class Header(nn.Module):
    """Computes the cosine to each class centre, with a margin on the target class, scaled by s.

    Always computes in float32: half precision cannot represent the angles near 0.
    """

    def __init__(
        self, in_features: int, out_features: int, margin: Margin, s: float = 64.0, world: World | None = None
    ) -> None:
        """Initialises the kernel, (in_features, out_features), from a normal distribution of std 0.01.

        Args:
            in_features: embedding size.
            out_features: number of classes.
            margin: of the target class.
            s: scale of the logits.
            world: the ranks among which a margin's running statistics are shared; None: this process alone.
        """
        super().__init__()
        self.s = s
        self.world = world
        self.margin = margin
        self.kernel = nn.Parameter(torch.empty(in_features, out_features))
        nn.init.normal_(self.kernel, std=0.01)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """(B, in_features), (B,) int64 -> logits (B, out_features) float32, scaled by s."""
        with torch.autocast(embeddings.device.type, enabled=False):
            embeddings = embeddings.float()
            norms = embedding_norms(embeddings) if self.margin.uses_norms else None  # (B, 1)
            if norms is not None and self.training:
                self.margin.observe_norms(norms if self.world is None else all_gather_tensor(norms, self.world))
            cosine = F.normalize(embeddings, dim=1) @ F.normalize(self.kernel.float(), dim=0)  # (B, out_features)
            target = cosine.gather(1, labels[:, None])  # (B, 1)
            return cosine.scatter(1, labels[:, None], self.margin(target, norms)) * self.s


def make_margin(config: Config) -> Margin:
    """Returns the margin of config.loss."""
    return load_entry(LOSSES[config.loss])(config)


def make_header(config: Config, num_classes: int, world: World, learned: bool = True) -> nn.Module:
    """Returns the config's header on the device of this rank.

    With header=replicated each rank holds the header, and its gradient is averaged. With header=sharded each rank holds
    its shard of the classes. With header_frozen it has no trainable parameter. Collective.

    learned: whether training changes the class centres; else they begin as zeros and have no gradient.
    """
    sizes = (config.embedding_size, num_classes, make_margin(config), config.s)
    header: Header | ShardedHeader
    if config.header == "sharded":
        header = ShardedHeader(*sizes, world, config.sample_rate, config.seed)
    else:
        header = Header(*sizes, world)
        to_device(header, world)
    header.kernel.requires_grad_(learned and not config.header_frozen)
    if not learned:
        nn.init.zeros_(header.kernel)
    return header if config.header == "sharded" else wrap_ddp(header, world)


def header_loss(header: nn.Module, embeddings: Tensor, labels: Tensor) -> Tensor:
    """Returns the cross-entropy of a header's logits, a scalar. A sharded header returns the loss itself, no logits."""
    output = header(embeddings, labels)
    return F.cross_entropy(output, labels) if output.ndim else output
