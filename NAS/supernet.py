"""The supernet of the differentiable search (DARTS, arXiv 1806.09055; paper, Section III).

Each edge of a cell is the sum of all operations of the search space, weighted by the softmax of the edge's alphas.
`none`, which is 0, is never in a genotype.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones import ops
from backbones.augment_cnn import cell_specs, make_stem, make_tail
from backbones.genotypes import N_INPUTS, SEARCH_SPACE, Genotype, Node

EDGES_PER_NODE = 2  # kept in the genotype
TAIL_CHANNELS, TAIL_GROUPS = 512, 128

# For each node and each input state: weights (operations,), the index of the only operation, or no edge.
EdgeWeights = list[list[Tensor | int | None]]


class MixedOp(nn.Module):
    """Weighted sum of all operations, from (B, C, H, W) to (B, C, H / stride, W / stride). Skips `none`, which is 0."""

    def __init__(self, operations: Sequence[str], c: int, stride: int) -> None:
        super().__init__()
        # Batch norms have no scale and shift, as in DARTS: the alphas scale.
        self._ops = nn.ModuleList(ops.build_operation(name, c, stride, affine=False) for name in operations)
        self._nonzero = [i for i, name in enumerate(operations) if name != "none"]

    def forward(self, x: Tensor, weights: Tensor | int) -> Tensor:
        """weights: of all operations (operations,), or the index of the only operation to run."""
        if isinstance(weights, int):
            return self._ops[weights](x)
        mixed = [self._ops[i](x) * weights[i] for i in self._nonzero]
        return sum(mixed[1:], start=mixed[0])


class SearchCell(nn.Module):
    """Cell of the supernet, in which each node reads all states before it.

    operations: the search space. n_nodes: number of nodes, all of which are concatenated to the output. Other arguments
    as in CellSpec.
    """

    def __init__(
        self,
        operations: Sequence[str],
        n_nodes: int,
        c_pp: int,
        c_p: int,
        c: int,
        reduction_p: bool,
        reduction: bool,
    ) -> None:
        super().__init__()
        self.channels = c
        self.reduction = reduction
        self.preproc0 = (
            ops.FactorizedReduce(c_pp, c, affine=False) if reduction_p else ops.StdConv(c_pp, c, 1, affine=False)
        )
        self.preproc1 = ops.StdConv(c_p, c, 1, affine=False)
        self.dag = nn.ModuleList(
            nn.ModuleList(
                MixedOp(operations, c, 2 if reduction and state < N_INPUTS else 1) for state in range(N_INPUTS + node)
            )
            for node in range(n_nodes)
        )

    def forward(self, s0: Tensor, s1: Tensor, weights: EdgeWeights) -> Tensor:  # -> (B, c · nodes, H', W')
        states = [self.preproc0(s0), self.preproc1(s1)]
        for edges, node_weights in zip(self.dag, weights, strict=True):
            outputs = [
                edge(state, weight)
                for edge, state, weight in zip(edges, states, node_weights, strict=True)  # type: ignore[call-overload]
                if weight is not None
            ]
            states.append(sum(outputs[1:], start=outputs[0]))
        return torch.cat(states[N_INPUTS:], dim=1)


class SearchCNN(nn.Module):
    """Supernet without its alphas: stem, cells and tail of a PocketNet, and a linear classifier.

    The 7×7 convolution of the tail has 128 groups. Arguments as in PocketNet; n_nodes: nodes per cell; operations: the
    search space.
    """

    def __init__(
        self,
        c: int,
        n_layers: int,
        n_nodes: int,
        stem_multiplier: int,
        n_classes: int,
        emb: int = 128,
        operations: Sequence[str] = SEARCH_SPACE,
    ) -> None:
        super().__init__()
        self.stem = make_stem(stem_multiplier * c)
        self.cells = nn.ModuleList(
            SearchCell(operations, n_nodes, *spec)
            for spec in cell_specs(c, n_layers, stem_multiplier, n_nodes, n_nodes)
        )
        self.tail = make_tail(8 * c * n_nodes, TAIL_CHANNELS, emb, TAIL_GROUPS)
        self.linear = nn.Linear(emb, n_classes)

    def forward(self, x: Tensor, normal: EdgeWeights, reduce: EdgeWeights) -> Tensor:
        """Maps images (B, 3, 112, 112) to logits (B, n_classes), with the edge weights of both kinds of cell."""
        s0 = s1 = self.stem(x)
        for cell in self.cells:
            s0, s1 = s1, cell(s0, s1, reduce if cell.reduction else normal)
        return self.linear(self.tail(s1).flatten(1))


class Supernet(nn.Module):
    """Supernet with its alphas: for each node of both kinds of cell a tensor (input states, operations).

    Arguments as in SearchCNN; the alphas have the order of `operations`.
    """

    def __init__(
        self,
        c: int,
        n_layers: int,
        n_nodes: int,
        stem_multiplier: int,
        n_classes: int,
        emb: int = 128,
        operations: Sequence[str] = SEARCH_SPACE,
    ) -> None:
        super().__init__()
        self.operations = tuple(operations)
        self.alpha_normal, self.alpha_reduce = (
            nn.ParameterList(
                nn.Parameter(1e-3 * torch.randn(N_INPUTS + node, len(operations))) for node in range(n_nodes)
            )
            for _ in range(2)
        )
        self.net = SearchCNN(c, n_layers, n_nodes, stem_multiplier, n_classes, emb, operations)

    def alphas(self) -> list[nn.Parameter]:
        """Returns the alphas of all nodes, those of the normal cell first."""
        return [*self.alpha_normal, *self.alpha_reduce]

    def weights(self) -> list[nn.Parameter]:
        """Returns all parameters except the alphas."""
        return list(self.net.parameters())

    def edge_weights(self) -> tuple[list[Tensor], list[Tensor]]:
        """Returns the softmax of the alphas, (input states, operations) per node, of both kinds of cell."""
        kinds = (self.alpha_normal, self.alpha_reduce)
        normal, reduce = ([F.softmax(alpha, dim=-1) for alpha in kind] for kind in kinds)
        return normal, reduce

    def forward(self, x: Tensor, genotype: Genotype | None = None) -> Tensor:
        """Maps images (B, 3, 112, 112) to logits (B, n_classes). With a genotype, runs only its edges."""
        if genotype is None:
            normal, reduce = self.edge_weights()
            return self.net(x, [list(w) for w in normal], [list(w) for w in reduce])
        return self.net(x, self._edges_of(genotype.normal), self._edges_of(genotype.reduce))

    def genotype(self, skip_limit: int | None = None) -> Genotype:
        """Returns the discrete cells, see `derive_nodes`. `skip_limit` applies to the normal cell only."""
        normal, reduce = ([alpha.detach() for alpha in kind] for kind in (self.alpha_normal, self.alpha_reduce))
        states = list(range(N_INPUTS, N_INPUTS + len(normal)))
        return Genotype(
            derive_nodes(normal, skip_limit, self.operations),
            states,
            derive_nodes(reduce, None, self.operations),
            states,
        )

    def _edges_of(self, nodes: list[Node]) -> EdgeWeights:
        """Returns the edges of a genotype's cell, as indices of their operations."""
        edges: EdgeWeights = []
        for n, node in enumerate(nodes):
            chosen = {state: self.operations.index(operation) for operation, state in node}
            edges.append([chosen.get(state) for state in range(N_INPUTS + n)])
        return edges


def derive_nodes(
    alphas: list[Tensor], skip_limit: int | None = None, operations: Sequence[str] = SEARCH_SPACE
) -> list[Node]:
    """Derives the nodes of a cell: the best operation of each edge except `none`, the two best edges of each node.

    The best edge is first. Alphas are compared without the softmax, as published.

    Args:
        alphas: for each node a tensor (input states, operations).
        skip_limit: keeps at most so many skip_connect in the cell, those with the highest alphas; any other edge uses
            its next best operation (as in P-DARTS, arXiv 1904.12760).
        operations: the search space, in the order of the alphas.
    """
    scores = [alpha.double().cpu().clone() for alpha in alphas]
    if "none" in operations:
        for node_scores in scores:
            node_scores[:, operations.index("none")] = -torch.inf
    nodes = [_best_edges(node_scores, operations) for node_scores in scores]
    while skip_limit is not None:
        skips = [
            (float(scores[n][state, operations.index(operation)]), n, state)
            for n, edges in enumerate(nodes)
            for operation, state in edges
            if operation == "skip_connect"
        ]
        if len(skips) <= skip_limit:
            break
        _, n, state = min(skips)
        scores[n][state, operations.index("skip_connect")] = -torch.inf
        nodes[n] = _best_edges(scores[n], operations)
    return nodes


def _best_edges(scores: Tensor, operations: Sequence[str]) -> Node:
    """Returns the best EDGES_PER_NODE edges of a node, best first. scores: (input states, operations)."""
    best, operation = scores.max(dim=1)
    order = torch.topk(best, min(EDGES_PER_NODE, len(best))).indices.tolist()
    return [(operations[int(operation[state])], state) for state in order]
