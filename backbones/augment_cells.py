"""A discrete cell: the genotype's nodes, built from the operations."""

import torch
from torch import Tensor, nn

from backbones import ops
from backbones.genotypes import N_INPUTS, Genotype


class AugmentCell(nn.Module):
    """One cell. Input states of c_pp and c_p channels; output of c × (number of concatenated states) channels."""

    def __init__(self, genotype: Genotype, c_pp: int, c_p: int, c: int, reduction_p: bool, reduction: bool) -> None:
        super().__init__()
        # After a reduction cell the state before last still has twice the resolution.
        self.preproc0 = ops.FactorizedReduce(c_pp, c) if reduction_p else ops.StdConv(c_pp, c, 1)
        self.preproc1 = ops.StdConv(c_p, c, 1)
        nodes = genotype.reduce if reduction else genotype.normal
        self.concat = genotype.reduce_concat if reduction else genotype.normal_concat
        self.states = [[state for _, state in edges] for edges in nodes]  # the states each node reads
        self.dag = nn.ModuleList(
            nn.ModuleList(
                ops.OPS[op](c, 2 if reduction and state < N_INPUTS else 1, True)  # only input states are halved
                for op, state in edges
            )
            for edges in nodes
        )

    def forward(self, s0: Tensor, s1: Tensor) -> Tensor:  # (B, c_pp, …), (B, c_p, H, W) -> (B, c · n, H', W')
        states = [self.preproc0(s0), self.preproc1(s1)]
        for edges, reads in zip(self.dag, self.states, strict=True):
            outputs = [op(states[i]) for op, i in zip(edges, reads, strict=True)]  # type: ignore[call-overload]
            states.append(sum(outputs[1:], start=outputs[0]))
        return torch.cat([states[i] for i in self.concat], dim=1)
