"""The supernet of the differentiable search (DARTS, arXiv 1806.09055; paper, Section III).

Every edge of a cell is the sum of all operations, weighted by a softmax over the edge's alphas. Built from the
operations of backbones/ops.py alone.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones import ops
from backbones.augment_cnn import cell_specs, make_stem, make_tail
from backbones.genotypes import N_INPUTS, Genotype, Node

# The operations of an edge, in the order of the published alphas; `none` last, and never in a genotype.
PRIMITIVES = (
    "max_pool_3x3", "avg_pool_3x3", "skip_connect", "dw_conv_3x3", "dw_conv_5x5", "dw_conv_7x7", "dw_conv_1x1", "none",
)  # fmt: skip
SKIP, NONE = PRIMITIVES.index("skip_connect"), PRIMITIVES.index("none")
EDGES_A_NODE = 2  # kept in the genotype
TAIL_CHANNELS, TAIL_GROUPS = 512, 128

# For each node, for each state before it: the weights (operations,) of all, the one operation there is, or no edge.
EdgeWeights = list[list[Tensor | int | None]]


class MixedOp(nn.Module):
    """All operations of an edge, (B, C, H, W) to (B, C, H / stride, W / stride). `none` adds nothing: it is not run."""

    def __init__(self, c: int, stride: int) -> None:
        super().__init__()
        # Batch norms without scale and shift, as in DARTS: the alphas do the scaling.
        self._ops = nn.ModuleList(ops.OPS[name](c, stride, False) for name in PRIMITIVES)

    def forward(self, x: Tensor, weights: Tensor | int) -> Tensor:
        """weights: of all operations (operations,), or the one that is run alone."""
        if isinstance(weights, int):
            return self._ops[weights](x)
        mixed = [self._ops[i](x) * weights[i] for i in range(len(PRIMITIVES)) if i != NONE]
        return sum(mixed[1:], start=mixed[0])


class SearchCell(nn.Module):
    """A cell in which every node may read all states before it."""

    def __init__(self, n_nodes: int, c_pp: int, c_p: int, c: int, reduction_p: bool, reduction: bool) -> None:
        super().__init__()
        self.channels = c
        self.reduction = reduction
        self.preproc0 = (
            ops.FactorizedReduce(c_pp, c, affine=False) if reduction_p else ops.StdConv(c_pp, c, 1, affine=False)
        )
        self.preproc1 = ops.StdConv(c_p, c, 1, affine=False)
        self.dag = nn.ModuleList(
            nn.ModuleList(MixedOp(c, 2 if reduction and state < N_INPUTS else 1) for state in range(N_INPUTS + node))
            for node in range(n_nodes)
        )

    def forward(self, s0: Tensor, s1: Tensor, weights: EdgeWeights) -> Tensor:  # -> (B, c · nodes, H', W')
        states = [self.preproc0(s0), self.preproc1(s1)]
        for edges, of_node in zip(self.dag, weights, strict=True):
            read = [
                edge(state, weight)
                for edge, state, weight in zip(edges, states, of_node, strict=True)  # type: ignore[call-overload]
                if weight is not None
            ]
            states.append(sum(read[1:], start=read[0]))
        return torch.cat(states[N_INPUTS:], dim=1)


class SearchCNN(nn.Module):
    """Stem, cells and tail as of a PocketNet (the 7×7 convolution in 128 groups), and a linear classifier."""

    def __init__(
        self, c: int, n_layers: int, n_nodes: int, stem_multiplier: int, n_classes: int, emb: int = 128
    ) -> None:
        super().__init__()
        self.stem = make_stem(stem_multiplier * c)
        self.cells = nn.ModuleList(
            SearchCell(n_nodes, *place) for place in cell_specs(c, n_layers, stem_multiplier, n_nodes, n_nodes)
        )
        self.tail = make_tail(8 * c * n_nodes, TAIL_CHANNELS, emb, TAIL_GROUPS)
        self.linear = nn.Linear(emb, n_classes)

    def forward(self, x: Tensor, normal: EdgeWeights, reduce: EdgeWeights) -> Tensor:
        """(B, 3, 112, 112), and the edges of both kinds of cell -> logits (B, n_classes)."""
        s0 = s1 = self.stem(x)
        for cell in self.cells:
            s0, s1 = s1, cell(s0, s1, reduce if cell.reduction else normal)
        return self.linear(self.tail(s1).flatten(1))


class Supernet(nn.Module):
    """The searched network and the alphas, a tensor (states before it, operations) for each node of both cells."""

    def __init__(
        self, c: int, n_layers: int, n_nodes: int, stem_multiplier: int, n_classes: int, emb: int = 128
    ) -> None:
        super().__init__()
        self.alpha_normal, self.alpha_reduce = (
            nn.ParameterList(
                nn.Parameter(1e-3 * torch.randn(N_INPUTS + node, len(PRIMITIVES))) for node in range(n_nodes)
            )
            for _ in range(2)
        )
        self.net = SearchCNN(c, n_layers, n_nodes, stem_multiplier, n_classes, emb)

    def alphas(self) -> list[nn.Parameter]:
        """Normal cell first, node by node."""
        return [*self.alpha_normal, *self.alpha_reduce]

    def weights(self) -> list[nn.Parameter]:
        """All other parameters."""
        return list(self.net.parameters())

    def edge_weights(self) -> tuple[list[Tensor], list[Tensor]]:
        """The softmax over each edge's operations (states, operations), of the normal and of the reduction cell."""
        kinds = (self.alpha_normal, self.alpha_reduce)
        normal, reduce = ([F.softmax(alpha, dim=-1) for alpha in kind] for kind in kinds)
        return normal, reduce

    def forward(self, x: Tensor, genotype: Genotype | None = None) -> Tensor:
        """(B, 3, 112, 112) -> logits (B, n_classes); by the alphas, or with the edges of a genotype alone."""
        if genotype is None:
            normal, reduce = self.edge_weights()
            return self.net(x, [list(w) for w in normal], [list(w) for w in reduce])
        return self.net(x, _edges_of(genotype.normal), _edges_of(genotype.reduce))

    def genotype(self, skip_limit: int | None = None) -> Genotype:
        """The discrete cells, see `derive`; `skip_limit` holds for the normal cell."""
        normal, reduce = ([alpha.detach() for alpha in kind] for kind in (self.alpha_normal, self.alpha_reduce))
        states = list(range(N_INPUTS, N_INPUTS + len(normal)))
        return Genotype(derive(normal, skip_limit), states, derive(reduce), states)


def _edges_of(nodes: list[Node]) -> EdgeWeights:
    edges: EdgeWeights = []
    for n, node in enumerate(nodes):
        chosen = {state: PRIMITIVES.index(operation) for operation, state in node}
        edges.append([chosen.get(state) for state in range(N_INPUTS + n)])
    return edges


def derive(alphas: list[Tensor], skip_limit: int | None = None) -> list[Node]:
    """The nodes of a cell: of each edge the best operation but `none`, of each node the two best edges, best first.

    Alphas are compared as they are, without the softmax, as published. `skip_limit` keeps at most so many skip_connect
    in the cell, those of the highest alpha; an edge that loses its own takes its next best operation (as P-DARTS,
    arXiv 1904.12760).
    """
    scores = [alpha.double().cpu().clone() for alpha in alphas]
    for of_node in scores:
        of_node[:, NONE] = -torch.inf
    nodes = [_best_edges(of_node) for of_node in scores]
    while skip_limit is not None:
        skips = [
            (float(scores[n][state, SKIP]), n, state)
            for n, edges in enumerate(nodes)
            for operation, state in edges
            if operation == "skip_connect"
        ]
        if len(skips) <= skip_limit:
            break
        _, n, state = min(skips)
        scores[n][state, SKIP] = -torch.inf
        nodes[n] = _best_edges(scores[n])
    return nodes


def _best_edges(scores: Tensor) -> Node:
    best, operation = scores.max(dim=1)
    order = torch.topk(best, min(EDGES_A_NODE, len(best))).indices.tolist()
    return [(PRIMITIVES[int(operation[state])], state) for state in order]
