"""PocketNet: a stem, cells of a genotype, and a tail that outputs the embedding (paper, Section III)."""

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor, nn

from backbones.augment_cells import AugmentCell
from backbones.genotypes import Genotype, parse_genotype
from backbones.prelu import PReLU
from config.base import Config


class PocketNet(nn.Module):
    """A network of cells. Maps images (B, 3, 112, 112) to embeddings (B, emb).

    Args:
        c: channels of the nodes in the first stage (S: 16, M: 32).
        n_layers: number of cells (S: 18, M: 9); cells n//3, 2n//3 and n-1 halve the resolution and double c.
        genotype: the normal and the reduction cell.
        stem_multiplier: the stem has stem_multiplier · c channels.
        emb: embedding size.
    """

    def __init__(self, c: int, n_layers: int, genotype: Genotype, stem_multiplier: int = 4, emb: int = 128) -> None:
        super().__init__()
        widths = (len(genotype.normal_concat), len(genotype.reduce_concat))
        self.stem = make_stem(stem_multiplier * c)
        self.cells = nn.ModuleList(
            AugmentCell(genotype, *spec) for spec in cell_specs(c, n_layers, stem_multiplier, *widths)
        )
        # As published: 512 channels, or 1024 for embeddings of 512.
        c_tail = 1024 if emb == 512 else 512
        self.tail = make_tail(8 * c * widths[1], c_tail, emb, groups=c_tail)  # each of three reductions doubles c

    def forward(self, x: Tensor) -> Tensor:  # (B, 3, 112, 112) -> (B, emb)
        s0 = s1 = self.stem(x)  # (B, 4c, 56, 56)
        for cell in self.cells:
            s0, s1 = s1, cell(s0, s1)
        return self.tail(s1).flatten(1)


AugmentCNN = PocketNet  # its name in the published code


def pocketnet(config: Config) -> PocketNet:
    """Builds the PocketNet of a config's channel, n_layers, stem_multiplier, genotype and embedding_size."""
    genotype = parse_genotype(config.genotypes[config.genotype])
    return PocketNet(config.channel, config.n_layers, genotype, config.stem_multiplier, config.embedding_size)


class CellSpec(NamedTuple):
    """Channels and resolution of a cell in a network."""

    c_pp: int  # channels of the output of the cell before the last
    c_p: int  # channels of the output of the last cell
    c: int  # channels of the nodes
    reduction_p: bool  # whether the last cell halved the resolution
    reduction: bool  # whether this cell halves the resolution


def cell_specs(c: int, n_layers: int, stem_multiplier: int, normal_width: int, reduce_width: int) -> Iterator[CellSpec]:
    """Yields the specs of all cells, first to last.

    normal_width, reduce_width: number of states that a normal and a reduction cell concatenate to their output.
    """
    c_pp = c_p = stem_multiplier * c
    reduction_p = False
    for i in range(n_layers):
        reduction = i in (n_layers // 3, 2 * n_layers // 3, n_layers - 1)
        c *= 2 if reduction else 1
        yield CellSpec(c_pp, c_p, c, reduction_p, reduction)
        c_pp, c_p, reduction_p = c_p, c * (reduce_width if reduction else normal_width), reduction


def make_stem(c: int) -> nn.Sequential:
    """Builds the stem, which maps (B, 3, 112, 112) to (B, c, 56, 56)."""
    return nn.Sequential(nn.Conv2d(3, c, 3, 2, 1, bias=False), nn.BatchNorm2d(c))


def make_tail(c: int, c_tail: int, emb: int, groups: int) -> nn.Sequential:
    """Builds the tail, which maps (B, c, 7, 7) to (B, emb, 1, 1)."""
    return nn.Sequential(
        PReLU(c),
        nn.Conv2d(c, c_tail, 1, bias=False),
        nn.BatchNorm2d(c_tail),
        PReLU(c_tail),
        nn.Conv2d(c_tail, c_tail, 7, groups=groups, bias=False),  # covers the 7×7 feature map of a 112×112 image
        nn.BatchNorm2d(c_tail),
        nn.Conv2d(c_tail, emb, 1, bias=False),
        nn.BatchNorm2d(emb),
    )
