"""Operations of cells, for discrete networks and for the mixed operations of the architecture search.

An operation maps (B, C, H, W) to (B, C, H / stride, W / stride). Only FactorizedReduce and a 1×1 StdConv may change C.
Module names are those of the published checkpoints.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backbones.prelu import PReLU
from utils.registry import OPERATIONS, load_entry


class StdConv(nn.Module):
    """PReLU, depthwise k×k, pointwise 1×1, batch norm: the operation `dw_conv_kxk`.

    With k = 1 it also preprocesses the inputs of a cell.
    """

    folds = False  # see `backbones.folding.fold_in_training`

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int = 1, affine: bool = True) -> None:
        super().__init__()
        self.net = nn.Sequential(
            PReLU(c_in),
            nn.Conv2d(c_in, c_in, kernel, stride, kernel // 2, groups=c_in, bias=False),
            nn.Conv2d(c_in, c_out, 1, bias=False),
            nn.BatchNorm2d(c_out, affine=affine),
        )

    def forward(self, x: Tensor) -> Tensor:  # (B, c_in, H, W) -> (B, c_out, H / stride, W / stride)
        if not (self.folds and self.training):
            return self.net(x)
        relu, _, _, bn = self.net
        return bn(folded_convolution(relu(x), *self.convolutions))

    @property
    def convolutions(self) -> tuple[nn.Conv2d, nn.Conv2d]:
        """The depthwise and the pointwise convolution."""
        return self.net[1], self.net[2]  # type: ignore[return-value]


class FactorizedReduce(nn.Module):
    """Halves the resolution with two stride-2 depthwise-separable 1×1 paths, the second shifted by one pixel."""

    folds = False  # see `backbones.folding.fold_in_training`

    def __init__(self, c_in: int, c_out: int, affine: bool = True) -> None:
        super().__init__()
        self.relu = PReLU(c_in)
        self.conv11 = nn.Conv2d(c_in, c_in, 1, 2, groups=c_in, bias=False)
        self.conv12 = nn.Conv2d(c_in, c_out // 2, 1, bias=False)
        self.conv21 = nn.Conv2d(c_in, c_in, 1, 2, groups=c_in, bias=False)
        self.conv22 = nn.Conv2d(c_in, c_out // 2, 1, bias=False)
        self.bn = nn.BatchNorm2d(c_out, affine=affine)

    def forward(self, x: Tensor) -> Tensor:  # (B, c_in, H, W) -> (B, c_out, H / 2, W / 2)
        x = self.relu(x)
        shifted = x[:, :, 1:, 1:]
        if self.folds and self.training:
            even = folded_convolution(x, self.conv11, self.conv12)
            odd = folded_convolution(shifted, self.conv21, self.conv22)
        else:
            even, odd = self.conv12(self.conv11(x)), self.conv22(self.conv21(shifted))
        return self.bn(torch.cat([even, odd], dim=1))


def folded_convolution(x: Tensor, depthwise: nn.Conv2d, pointwise: nn.Conv2d) -> Tensor:
    """Convolves (B, c_in, H, W) with two 1×1 convolutions without biases, the first depthwise, as with one."""
    weight = pointwise.weight * depthwise.weight.view(1, -1, 1, 1)  # (c_out, c_in, 1, 1)
    rows, columns = depthwise.stride
    # Not by the stride of the convolution: with 8 input and 4 output channels, the gradient of the weight then writes
    # beyond its memory (oneDNN of torch 2.13, AVX-512).
    return F.conv2d(x[:, :, ::rows, ::columns], weight)


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


# The functions of the table OPERATIONS in utils/registry.py, each (channels, stride, affine) -> module.


def max_pool_3x3(c: int, stride: int, affine: bool) -> nn.Module:
    """Builds 3×3 max pooling with batch norm."""
    return PoolBN(nn.MaxPool2d(3, stride, 1), c, affine)


def avg_pool_3x3(c: int, stride: int, affine: bool) -> nn.Module:
    """Builds 3×3 average pooling, which leaves out the padding, with batch norm."""
    return PoolBN(nn.AvgPool2d(3, stride, 1, count_include_pad=False), c, affine)


def skip_connect(c: int, stride: int, affine: bool) -> nn.Module:
    """Builds an identity, or a FactorizedReduce where the resolution is halved."""
    return nn.Identity() if stride == 1 else FactorizedReduce(c, c, affine)


def none(c: int, stride: int, affine: bool) -> nn.Module:
    """Builds the operation without a connection."""
    return Zero(stride)


def _dw_conv(kernel: int) -> Callable[[int, int, bool], nn.Module]:
    return lambda c, stride, affine: StdConv(c, c, kernel, stride, affine)


dw_conv_1x1, dw_conv_3x3, dw_conv_5x5, dw_conv_7x7 = map(_dw_conv, (1, 3, 5, 7))


def build_operation(name: str, c: int, stride: int, affine: bool = True) -> nn.Module:
    """Builds an operation by its name, from (B, c, H, W) to (B, c, H / stride, W / stride).

    affine: whether its batch norm has a scale and a shift.
    """
    return load_entry(OPERATIONS[name])(c, stride, affine)
