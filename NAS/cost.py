"""What the relaxed cells cost: the multiply-adds of every operation, weighted as the supernet weights it."""

import torch
from torch import Tensor, nn

from backbones.genotypes import N_INPUTS
from NAS.supernet import SearchCell, SearchCNN
from utils.datasets.transforms import SIZE
from utils.flops import count

Edges = list[Tensor]  # for each node (states before it, operations)


def operation_costs(net: SearchCNN) -> tuple[Edges, Edges]:
    """Millions of multiply-adds of a 112×112 image, summed over the normal cells and over the reduction cells."""
    known: dict[tuple[int, int, str], float] = {}
    totals: dict[bool, Edges] = {}
    resolution = SIZE // 2  # after the stem
    for cell in net.cells:
        assert isinstance(cell, SearchCell)
        nodes_at = resolution // 2 if cell.reduction else resolution  # a node's state; the inputs have `resolution`
        costs = []
        for edges in cell.dag:
            sizes = [resolution if state < N_INPUTS else nodes_at for state in range(len(edges))]  # type: ignore[arg-type]
            rows = [
                [_cost(op, cell.channels, size, known) for op in edge._ops]
                for edge, size in zip(edges, sizes, strict=True)  # type: ignore[call-overload]
            ]
            costs.append(torch.tensor(rows))
        before = totals.get(cell.reduction)
        totals[cell.reduction] = costs if before is None else [a + b for a, b in zip(before, costs, strict=True)]
        resolution = nodes_at
    return totals[False], totals[True]


def _cost(op: nn.Module, channels: int, resolution: int, known: dict[tuple[int, int, str], float]) -> float:
    key = channels, resolution, repr(op)
    if key not in known:
        known[key] = count(op, (channels, resolution, resolution)).multiply_adds / 1e6
    return known[key]


def expected(weights: Edges, costs: Edges) -> Tensor:
    """The multiply-adds of cells whose operations count by their weights."""
    return torch.stack([(w * c).sum() for w, c in zip(weights, costs, strict=True)]).sum()
