"""PocketNet: a stem, cells of a genotype, and a tail that gives the embedding (paper, Section III)."""

from torch import Tensor, nn

from backbones.augment_cells import AugmentCell
from backbones.genotypes import Genotype


class AugmentCNN(nn.Module):
    """The network of a genotype.

    Args:
        c: channels of a cell's nodes in the first stage (S: 16, M: 32).
        n_layers: number of cells (S: 18, M: 9); cells n//3, 2n//3 and n-1 halve the resolution and double c.
        genotype: of both kinds of cell.
        stem_multiplier: the stem has stem_multiplier · c channels.
        emb: embedding size.
    """

    def __init__(self, c: int, n_layers: int, genotype: Genotype, stem_multiplier: int = 4, emb: int = 128) -> None:
        super().__init__()
        c_stem = stem_multiplier * c
        self.stem = nn.Sequential(nn.Conv2d(3, c_stem, 3, 2, 1, bias=False), nn.BatchNorm2d(c_stem))
        reductions = {n_layers // 3, 2 * n_layers // 3, n_layers - 1}
        self.cells = nn.ModuleList()
        c_pp, c_p, reduction_p = c_stem, c_stem, False
        for i in range(n_layers):
            reduction = i in reductions
            c *= 2 if reduction else 1
            cell = AugmentCell(genotype, c_pp, c_p, c, reduction_p, reduction)
            self.cells.append(cell)
            c_pp, c_p, reduction_p = c_p, c * len(cell.concat), reduction
        # The published networks have 512 channels here, and 1024 where the embedding is 512.
        c_tail = 1024 if emb == 512 else 512
        self.tail = nn.Sequential(
            nn.PReLU(c_p),
            nn.Conv2d(c_p, c_tail, 1, bias=False),
            nn.BatchNorm2d(c_tail),
            nn.PReLU(c_tail),
            nn.Conv2d(c_tail, c_tail, 7, groups=c_tail, bias=False),  # 7×7 is the whole map of a 112×112 image
            nn.BatchNorm2d(c_tail),
            nn.Conv2d(c_tail, emb, 1, bias=False),
            nn.BatchNorm2d(emb),
        )

    def forward(self, x: Tensor) -> Tensor:  # (B, 3, 112, 112) -> (B, emb)
        s0 = s1 = self.stem(x)  # (B, 4c, 56, 56)
        for cell in self.cells:
            s0, s1 = s1, cell(s0, s1)
        return self.tail(s1).flatten(1)
