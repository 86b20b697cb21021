"""Operations of cells, for discrete networks and for the mixed operations of the architecture search.

An operation maps (B, C, H, W) to (B, C, H / stride, W / stride). Only FactorizedReduce and a 1×1 StdConv may change C.
Module names are those of the published checkpoints.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn


class StdConv(nn.Module):
    """PReLU, depthwise k×k, pointwise 1×1, batch norm: the operation `dw_conv_kxk`.

    With k = 1 it also preprocesses the inputs of a cell.
    """

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int = 1, affine: bool = True) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.PReLU(c_in),
            nn.Conv2d(c_in, c_in, kernel, stride, kernel // 2, groups=c_in, bias=False),
            nn.Conv2d(c_in, c_out, 1, bias=False),
            nn.BatchNorm2d(c_out, affine=affine),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class FactorizedReduce(nn.Module):
    """Halves the resolution with two stride-2 depthwise-separable 1×1 paths, the second shifted by one pixel."""

    def __init__(self, c_in: int, c_out: int, affine: bool = True) -> None:
        super().__init__()
        self.relu = nn.PReLU(c_in)
        self.conv11 = nn.Conv2d(c_in, c_in, 1, 2, groups=c_in, bias=False)
        self.conv12 = nn.Conv2d(c_in, c_out // 2, 1, bias=False)
        self.conv21 = nn.Conv2d(c_in, c_in, 1, 2, groups=c_in, bias=False)
        self.conv22 = nn.Conv2d(c_in, c_out // 2, 1, bias=False)
        self.bn = nn.BatchNorm2d(c_out, affine=affine)

    def forward(self, x: Tensor) -> Tensor:  # (B, c_in, H, W) -> (B, c_out, H / 2, W / 2)
        x = self.relu(x)
        even = self.conv12(self.conv11(x))
        odd = self.conv22(self.conv21(x[:, :, 1:, 1:]))
        return self.bn(torch.cat([even, odd], dim=1))


class PoolBN(nn.Module):
    """3×3 pooling, then batch norm."""

    def __init__(self, pool: nn.Module, c: int, affine: bool = True) -> None:
        super().__init__()
        self.pool = pool
        self.bn = nn.BatchNorm2d(c, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.pool(x))


class Zero(nn.Module):
    """The operation `none`: no connection. Returns zeros of the output's shape."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x[:, :, :: self.stride, :: self.stride])


def _skip(c: int, stride: int, affine: bool) -> nn.Module:
    return nn.Identity() if stride == 1 else FactorizedReduce(c, c, affine)


# operation -> builder(C, stride, affine)
OPS: dict[str, Callable[[int, int, bool], nn.Module]] = {
    "max_pool_3x3": lambda c, stride, affine: PoolBN(nn.MaxPool2d(3, stride, 1), c, affine),
    "avg_pool_3x3": lambda c, stride, affine: PoolBN(nn.AvgPool2d(3, stride, 1, count_include_pad=False), c, affine),
    "skip_connect": _skip,
    "dw_conv_1x1": lambda c, stride, affine: StdConv(c, c, 1, stride, affine),
    "dw_conv_3x3": lambda c, stride, affine: StdConv(c, c, 3, stride, affine),
    "dw_conv_5x5": lambda c, stride, affine: StdConv(c, c, 5, stride, affine),
    "dw_conv_7x7": lambda c, stride, affine: StdConv(c, c, 7, stride, affine),
    "none": lambda c, stride, affine: Zero(stride),
}
