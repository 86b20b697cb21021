"""Expected cost of relaxed cells: multiply-adds of all operations, weighted as in the supernet."""

import torch
from torch import Tensor, nn

from backbones.genotypes import N_INPUTS
from NAS.supernet import SearchCell, SearchCNN
from utils.datasets.alignment import SIZE
from utils.flops import count_operations

EdgeCosts = list[Tensor]  # for each node (input states, operations)


def operation_costs(net: SearchCNN) -> tuple[EdgeCosts, EdgeCosts]:
    """Returns the cost of each operation of each edge, in millions of multiply-adds for a 112×112 image.

    The first value is summed over all normal cells, the second over all reduction cells.
    """
    cache: dict[tuple[int, int, str], float] = {}
    totals: dict[bool, EdgeCosts] = {}
    resolution = SIZE // 2  # after the stem
    for cell in net.cells:
        assert isinstance(cell, SearchCell)
        node_resolution = resolution // 2 if cell.reduction else resolution  # the inputs have `resolution`
        costs = []
        for edges in cell.dag:
            sizes = [resolution if state < N_INPUTS else node_resolution for state in range(len(edges))]  # type: ignore[arg-type]
            rows = [
                [_cost(op, cell.channels, size, cache) for op in edge._ops]
                for edge, size in zip(edges, sizes, strict=True)  # type: ignore[call-overload]
            ]
            costs.append(torch.tensor(rows))
        total = totals.get(cell.reduction)
        totals[cell.reduction] = costs if total is None else [a + b for a, b in zip(total, costs, strict=True)]
        resolution = node_resolution
    return totals[False], totals[True]


def _cost(op: nn.Module, channels: int, resolution: int, cache: dict[tuple[int, int, str], float]) -> float:
    """Returns the millions of multiply-adds of an operation on (channels, resolution, resolution), cached."""
    key = channels, resolution, repr(op)
    if key not in cache:
        cache[key] = count_operations(op, (channels, resolution, resolution)).multiply_adds / 1e6
    return cache[key]


def expected_multiply_adds(weights: EdgeCosts, costs: EdgeCosts) -> Tensor:
    """Returns the sum of all costs weighted by the edge weights, in millions of multiply-adds, as a scalar."""
    return torch.stack([(w * c).sum() for w, c in zip(weights, costs, strict=True)]).sum()
