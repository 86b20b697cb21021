"""Operations are counted on the device of the network, here on fake tensors of a GPU, which compute shapes alone.

An operation on fake tensors of two devices fails, as on a real GPU. A torch without CUDA cannot slice such tensors, so
the search space here has no operation that does.
"""

import torch
from torch import nn
from torch._subclasses import FakeTensorMode

from NAS.cost import expected_multiply_adds, operation_costs
from NAS.supernet import Supernet
from utils.flops import count_operations

GPU = torch.device("cuda", 0)


def to_fake_gpu(module: nn.Module) -> None:
    """Replaces the parameters and buffers of a module by fake ones on the GPU."""
    for part in module.modules():
        for values in (part._parameters, part._buffers):
            for name, value in values.items():
                if value is not None:
                    fake = torch.empty(value.shape, dtype=value.dtype, device=GPU)
                    values[name] = nn.Parameter(fake) if isinstance(value, nn.Parameter) else fake


def test_operations_that_have_statistics_and_no_parameters_are_counted_on_the_gpu():
    net = Supernet(4, 4, 2, 3, 10, operations=("max_pool_3x3", "avg_pool_3x3", "dw_conv_3x3"))
    with FakeTensorMode(), torch.no_grad():
        to_fake_gpu(net)
        normal, reduce = operation_costs(net.net)
        weights = [part for kind in net.edge_weights() for part in kind]
        cost = expected_multiply_adds(weights, [part.to(GPU) for part in (*normal, *reduce)])
    assert cost.device == GPU


def test_an_operation_without_parameters_and_statistics_is_counted():
    assert count_operations(nn.Identity(), (4, 8, 8)).multiply_adds == 0
