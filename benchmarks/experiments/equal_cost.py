"""Derives the cells of a search at a given cost: of all cells with this cost, those with the greatest sum of alphas."""

import json
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from backbones.genotypes import N_INPUTS, Genotype, Node
from benchmarks.experiments.random_cells import network_cost
from NAS.cost import EdgeCosts, operation_costs
from NAS.derive import read_genotype
from NAS.supernet import SearchCNN
from utils.errors import UserError

STEM_MULTIPLIER = 4  # of PocketNet
Edge = tuple[float, int, int, tuple[str, int]]  # alpha, multiply-adds, whether a skip_connect, (operation, state)
Best = dict[tuple[int, int], tuple[float, list[Node]]]  # by multiply-adds and skip_connects: greatest sum, its nodes


def derive_at_cost(
    normal: list[Tensor],
    reduce: list[Tensor],
    operations: Sequence[str],
    skip_limit: int | None,
    target: Genotype,
    tolerance: float,
    size: tuple[int, int, int],
) -> Genotype | None:
    """Returns the cells with the greatest sum of alphas whose network has the multiply-adds of `target`, None if none.

    Args:
        normal, reduce: for each node the alphas (input states, operations).
        operations: the search space, in the order of the alphas.
        skip_limit: maximum of skip_connect in the normal cell; None: any.
        target: genotype of the cost.
        tolerance: of the cost, relative.
        size: channel, n_layers and embedding_size of the network.
    """
    channel, n_layers, embedding_size = size
    net = SearchCNN(channel, n_layers, len(normal), STEM_MULTIPLIER, 2, embedding_size, operations)
    costs = operation_costs(net)
    kinds = [
        [(cost, total, nodes) for (cost, skips), (total, nodes) in best.items() if limit is None or skips <= limit]
        for best, limit in (
            (_best_nodes(normal, costs[0], operations), skip_limit),
            (_best_nodes(reduce, costs[1], operations), None),
        )
    ]
    summed, totals = (np.add.outer(*(np.array([row[i] for row in kind]) for kind in kinds)) for i in (0, 1))
    states = list(range(N_INPUTS, N_INPUTS + len(normal)))

    def genotype(i: int, j: int) -> Genotype:
        return Genotype(kinds[0][i][2], states, kinds[1][j][2], states)

    # The stem, the inputs of cells and the tail cost the same for all cells.
    rest = network_cost(genotype(0, 0), *size).multiply_adds - summed[0, 0]
    wanted = network_cost(target, *size).multiply_adds
    totals[np.abs(summed + rest - wanted) > tolerance * wanted] = -np.inf
    i, j = divmod(int(np.argmax(totals)), totals.shape[1])
    return None if np.isinf(totals[i, j]) else genotype(i, j)


def _best_nodes(alphas: list[Tensor], costs: EdgeCosts, operations: Sequence[str]) -> Best:
    """Returns, for each sum of multiply-adds and skip_connects of a cell, the nodes with the greatest sum of alphas."""
    best: Best = {(0, 0): (0.0, [])}
    for node_alphas, node_costs in zip(alphas, costs, strict=True):
        longer: Best = {}
        pairs = _best_pairs(node_alphas, node_costs, operations)
        for (cost, skips), (total, nodes) in best.items():
            for (more, more_skips), (pair_total, pair) in pairs.items():
                key = cost + more, skips + more_skips
                if key not in longer or total + pair_total > longer[key][0]:
                    longer[key] = total + pair_total, [*nodes, *pair]
        best = longer
    return best


def _best_pairs(alphas: Tensor, costs: Tensor, operations: Sequence[str]) -> Best:
    """Returns the same for one node, of two edges from different states, the one with the greater alpha first."""
    edges: list[Edge] = [
        (float(alphas[state, i]), _to_int(costs[state, i]), int(name == "skip_connect"), (name, state))
        for state in range(len(alphas))
        for i, name in enumerate(operations)
        if name != "none"
    ]
    best: Best = {}
    for a, b in product(edges, edges):
        key = a[1] + b[1], a[2] + b[2]
        if a[3][1] != b[3][1] and a[0] >= b[0] and (key not in best or a[0] + b[0] > best[key][0]):
            best[key] = a[0] + b[0], [[a[3], b[3]]]
    return best


def _to_int(millions: Tensor) -> int:
    return round(1e6 * float(millions))


def read_search(folder: Path, target: Genotype, tolerance: float, size: tuple[int, int, int]) -> tuple[Genotype, str]:
    """Returns the cells of a search's last epoch at the cost of `target`, and how they were derived, as text.

    These are the cells that the search derived itself where they have this cost, where no cells have it, and where the
    folder has no alphas. The limit of skip_connect is that of the search. Raises UserError if there is no search.
    """
    found, _ = read_genotype(folder, None)
    wanted, cost = (network_cost(genotype, *size).multiply_adds for genotype in (target, found))
    line = json.loads((folder / "genotypes.jsonl").read_text().splitlines()[-1])
    if "alphas" not in line or abs(cost - wanted) <= tolerance * wanted:
        return found, "as found"
    try:
        limit = int(json.loads((folder / "config.json").read_text())["skip_limit"])
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder / 'config.json'}: cannot be read ({error!s:.80})") from None
    alphas = [[torch.tensor(node) for node in line["alphas"][kind]] for kind in ("normal", "reduce")]
    skip_limit = None if limit < 0 else limit
    derived = derive_at_cost(alphas[0], alphas[1], line["operations"], skip_limit, target, tolerance, size)
    return (found, "as found") if derived in (None, found) else (derived, "derived at equal cost")
