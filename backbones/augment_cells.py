"""Discrete cell, built from the nodes of a genotype."""

import torch
from torch import Tensor, nn

from backbones import ops
from backbones.genotypes import N_INPUTS, Genotype


class AugmentCell(nn.Module):
    """Cell of a discrete network.

    Args:
        genotype: the operations of the cell.
        c_pp: channels of the first input, the output of the cell before the last.
        c_p: channels of the second input, the output of the last cell.
        c: channels of the nodes; the output has c × (number of concatenated states) channels.
        reduction_p: whether the last cell halved the resolution.
        reduction: whether this cell halves the resolution.
    """

    def __init__(self, genotype: Genotype, c_pp: int, c_p: int, c: int, reduction_p: bool, reduction: bool) -> None:
        super().__init__()
        # After a reduction cell, the output of the cell before it still has twice the resolution.
        self.preproc0 = ops.FactorizedReduce(c_pp, c) if reduction_p else ops.StdConv(c_pp, c, 1)
        self.preproc1 = ops.StdConv(c_p, c, 1)
        nodes = genotype.reduce if reduction else genotype.normal
        self.concat = genotype.reduce_concat if reduction else genotype.normal_concat
        self.node_inputs = [[state for _, state in edges] for edges in nodes]  # input states of each node
        self.dag = nn.ModuleList(
            nn.ModuleList(
                # Only the cell's inputs have twice the resolution.
                ops.build_operation(op, c, 2 if reduction and state < N_INPUTS else 1)
                for op, state in edges
            )
            for edges in nodes
        )

    def forward(self, s0: Tensor, s1: Tensor) -> Tensor:  # (B, c_pp, …), (B, c_p, H, W) -> (B, c · n, H', W')
        states = [self.preproc0(s0), self.preproc1(s1)]
        for edges, inputs in zip(self.dag, self.node_inputs, strict=True):
            outputs = [op(states[i]) for op, i in zip(edges, inputs, strict=True)]  # type: ignore[call-overload]
            states.append(sum(outputs[1:], start=outputs[0]))
        return torch.cat([states[i] for i in self.concat], dim=1)
