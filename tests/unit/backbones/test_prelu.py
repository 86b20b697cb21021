"""PReLU with a faster gradient has the values and gradients of nn.PReLU."""

import pytest
import torch
from torch import nn

from backbones.prelu import PReLU


def backward(module: nn.Module, x: torch.Tensor, gradient: torch.Tensor) -> list[torch.Tensor]:
    """Returns the output, and the gradients of the input and of the parameters."""
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    module.zero_grad()
    y = module(x)
    y.backward(gradient)
    return [y, x.grad, *(parameter.grad for parameter in module.parameters())]


@pytest.mark.parametrize("shape", [(4, 6, 5, 5), (3, 6), (2, 6, 7)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_prelu_has_the_gradients_of_torch_also_at_zero(shape, dtype):
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-2, 3, shape, generator=generator).to(dtype)  # a fifth of the numbers are 0
    x.view(-1)[:2] = torch.tensor([-0.0, 1e-42])
    gradient = torch.randn(shape, generator=generator, dtype=dtype)
    ours, plain = PReLU(6).to(dtype), nn.PReLU(6).to(dtype)
    ours.weight.data.copy_(torch.linspace(-0.5, 1.5, 6))
    plain.load_state_dict(ours.state_dict())
    found, expected = backward(ours, x, gradient), backward(plain, x, gradient)
    assert "_PReLU" in type(found[0].grad_fn).__name__
    torch.testing.assert_close(found[:2], expected[:2], rtol=0, atol=0)
    torch.testing.assert_close(found[2], expected[2])


def test_prelu_leaves_autocast_and_tracing_alone():
    x = torch.randn(2, 6, 4, 4, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = PReLU(6)(x)
    assert y.dtype is torch.bfloat16 and "_PReLU" not in type(y.grad_fn).__name__
    traced = torch.jit.trace(PReLU(6), x)
    assert "aten::prelu" in str(traced.graph)


def test_prelu_has_second_derivatives():
    x = torch.randn(3, 6, 2, dtype=torch.float64, requires_grad=True)
    module = PReLU(6).double()
    assert torch.autograd.gradgradcheck(
        lambda x, slope: torch.func.functional_call(module, {"weight": slope}, x), (x, module.weight)
    )
