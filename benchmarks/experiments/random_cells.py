"""Random genotypes, as a search could derive them, and networks of them at equal cost."""

from collections.abc import Sequence

import numpy as np

from backbones.augment_cnn import PocketNet
from backbones.genotypes import N_INPUTS, SEARCH_SPACE, Genotype, Node
from NAS.supernet import EDGES_PER_NODE
from utils.errors import UserError
from utils.flops import Cost, count_operations

MAX_DRAWS = 5000  # for one cell, after which no cell of this cost is expected


def random_genotype(rng: np.random.Generator, n_nodes: int, search_space: Sequence[str] = SEARCH_SPACE) -> Genotype:
    """Draws, for every node, two different input states, each with any operation of the space but `none`."""
    operations = [name for name in search_space if name != "none"]

    def random_cell() -> list[Node]:
        return [
            [
                (operations[int(operation)], int(state))
                for operation, state in zip(
                    rng.integers(0, len(operations), EDGES_PER_NODE),
                    rng.choice(N_INPUTS + n, EDGES_PER_NODE, replace=False),
                    strict=True,
                )
            ]
            for n in range(n_nodes)
        ]

    states = list(range(N_INPUTS, N_INPUTS + n_nodes))
    return Genotype(random_cell(), states, random_cell(), states)


def network_cost(genotype: Genotype, channel: int, n_layers: int, embedding_size: int) -> Cost:
    """Returns the size of the network with this genotype."""
    return count_operations(PocketNet(channel, n_layers, genotype, emb=embedding_size))


def draw_at_equal_cost(
    count: int,
    target: Genotype,
    tolerance: float,
    size: tuple[int, int, int],
    search_space: Sequence[str],
    seed: int,
) -> tuple[list[Genotype], int]:
    """Draws different random genotypes whose multiply-adds differ from those of `target` by at most `tolerance`.

    Returns them with the number of draws. Others are rejected, so that all cells of the right cost are equally likely;
    the channels are the same for all. The first cells do not depend on `count`. Raises UserError if such cells are too
    rare.

    Args:
        count: number of genotypes.
        target: the genotype to compare with; the others have as many nodes.
        tolerance: relative difference.
        size: channel, n_layers and embedding_size of the networks.
        search_space: operations to draw from.
        seed: of the draws.
    """
    wanted = network_cost(target, *size).multiply_adds
    rng = np.random.default_rng(seed)
    cells: list[Genotype] = []
    draws = since_last = 0
    while len(cells) < count:
        genotype = random_genotype(rng, len(target.normal), search_space)
        draws, since_last = draws + 1, since_last + 1
        if abs(network_cost(genotype, *size).multiply_adds / wanted - 1) <= tolerance and genotype not in cells:
            cells.append(genotype)
            since_last = 0
        elif since_last >= MAX_DRAWS:
            raise UserError(
                f"no cell within {100 * tolerance:g} % of {wanted / 1e6:.1f} M multiply-adds in {MAX_DRAWS} draws",
                fix="raise --tolerance, or change --channel",
            )
    return cells, draws
