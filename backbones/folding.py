"""Folds batch norms and 1×1 depthwise convolutions of a trained network into the convolutions beside them."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from backbones.ops import FactorizedReduce, StdConv

_NEGLIGIBLE = 1e-12  # part of a tensor's largest weight; float32 resolves 6e-8


def fold(network: nn.Module) -> nn.Module:
    """Returns a copy of a network, in evaluation mode, that computes the same with fewer layers.

    In every nn.Sequential, batch norms are folded into the convolution before them, and 1×1 depthwise convolutions into
    the convolution after them; so are those of FactorizedReduce. The weights are computed in float64. Other layers stay
    as they are, at their places. Weights too small to change a result in float32 become zero: with them some products
    leave the normal range of float32, on which CPUs take several times as long.

    The copy has other keys than the network: it is for inference, not for checkpoints.
    """
    folded = _fold(copy.deepcopy(network).eval())
    for parameter in folded.parameters():
        values = parameter.data.abs()
        parameter.data.masked_fill_(values < _NEGLIGIBLE * values.max(), 0)
    return folded


def _fold(module: nn.Module) -> nn.Module:
    if isinstance(module, FactorizedReduce):
        return _FoldedReduce(module)
    for name, child in module.named_children():
        setattr(module, name, _fold(child))
    if type(module) is nn.Sequential:  # a subclass may compute something else
        _fold_layers(module)
    return module


def _fold_layers(layers: nn.Sequential) -> None:
    """Folds neighbours. Where a layer was, nn.Identity stays, so that the others keep their places."""
    before = -1  # index of the last layer that is not folded
    for i, layer in enumerate(layers):
        merged = _merge(layers[before], layer) if before >= 0 else None
        if merged is None:
            before = i
        else:
            layers[before], layers[i] = merged, nn.Identity()


def _merge(before: nn.Module, layer: nn.Module) -> nn.Conv2d | None:
    """Returns the convolution that computes both layers, or None if there is none."""
    if not isinstance(before, nn.Conv2d) or before.padding_mode != "zeros":
        return None
    if isinstance(layer, nn.BatchNorm2d) and layer.track_running_stats:
        return _scale_output(before, *_scale_and_shift(layer))
    if isinstance(layer, nn.Conv2d) and _follows_scaling(before, layer):
        return _scale_input(before, layer)
    return None


def fold_in_training(network: nn.Module) -> None:
    """Makes 1×1 depthwise convolutions part of the pointwise weight in each training step, which is faster on CPUs.

    Parameters and keys stay the same, and outputs and gradients up to float32 rounding. In evaluation mode the network
    computes as before.
    """
    for module in network.modules():
        if isinstance(module, FactorizedReduce):
            module.folds = True
        elif isinstance(module, StdConv):
            module.folds = module.convolutions[0].kernel_size == (1, 1)


class _FoldedReduce(nn.Module):
    """A FactorizedReduce whose paths are one 1×1 convolution each; its batch norm is split between them."""

    def __init__(self, reduce: FactorizedReduce) -> None:
        super().__init__()
        scale, shift = _scale_and_shift(reduce.bn)
        half = reduce.conv12.out_channels
        self.relu = reduce.relu
        self.even = _scale_output(_scale_input(reduce.conv11, reduce.conv12), scale[:half], shift[:half])
        self.odd = _scale_output(_scale_input(reduce.conv21, reduce.conv22), scale[half:], shift[half:])

    def forward(self, x: Tensor) -> Tensor:  # (B, c_in, H, W) -> (B, c_out, H / 2, W / 2)
        x = self.relu(x)
        return torch.cat([self.even(x), self.odd(x[:, :, 1:, 1:])], dim=1)


def _scale_and_shift(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Returns what a batch norm multiplies and then adds to each channel: (C,) and (C,) float64."""
    assert norm.running_mean is not None and norm.running_var is not None
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.affine:
        scale = scale * norm.weight.double()
    shift = -norm.running_mean.double() * scale
    return scale, shift + norm.bias.double() if norm.affine else shift


def _scale_output(conv: nn.Conv2d, scale: Tensor, shift: Tensor) -> nn.Conv2d:
    """Returns a convolution whose output is scale · conv(x) + shift, for each channel."""
    return _rebuild(conv, conv.stride, conv.weight.double() * scale[:, None, None, None], _bias(conv) * scale + shift)


def _follows_scaling(before: nn.Conv2d, conv: nn.Conv2d) -> bool:
    """Whether the first convolution only scales each channel of the second one's input."""
    is_scaling = before.kernel_size == (1, 1) and before.groups == before.in_channels == before.out_channels
    pointwise = conv.kernel_size == (1, 1) and conv.groups == 1 and conv.stride == (1, 1)
    return is_scaling and pointwise and before.padding == conv.padding == (0, 0)


def _scale_input(scaling: nn.Conv2d, conv: nn.Conv2d) -> nn.Conv2d:
    """Returns a 1×1 convolution that computes conv(scaling(x)), where `scaling` is 1×1 and depthwise."""
    weight = conv.weight.double()  # (C', C, 1, 1)
    bias = _bias(conv) + weight.flatten(1) @ _bias(scaling)
    return _rebuild(conv, scaling.stride, weight * scaling.weight.double().view(1, -1, 1, 1), bias)


def _bias(conv: nn.Conv2d) -> Tensor:
    """Returns the bias (C,) of a convolution in float64, zeros if it has none."""
    return conv.weight.new_zeros(conv.out_channels, dtype=torch.float64) if conv.bias is None else conv.bias.double()


@torch.no_grad()
def _rebuild(conv: nn.Conv2d, stride: tuple[int, ...], weight: Tensor, bias: Tensor) -> nn.Conv2d:
    """Returns a convolution like `conv` with another stride, weight and bias."""
    shape: Any = (stride, conv.padding, conv.dilation, conv.groups)
    built = nn.Conv2d(conv.in_channels, conv.out_channels, conv.kernel_size, *shape).to(conv.weight)  # type: ignore[arg-type]
    built.weight.copy_(weight)
    built.bias.copy_(bias)  # type: ignore[union-attr]
    return built.eval()
