import pytest
import torch
from torch import nn

from autoregressive_diffusion_pytorch.utilization import matmul_rate, training_flops


def test_operations_of_a_linear_layer():
    model = nn.Sequential(nn.Linear(5, 7), nn.Dropout(), nn.Linear(7, 3))
    # two operations for each weight and row; twice as many backward
    assert training_flops(model, lambda model: model(torch.rand(11, 5))) == 3 * 2 * 11 * (5 * 7 + 7 * 3)
    assert model.training


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_rate_of_this_machine(dtype):
    rate = matmul_rate(torch.device("cpu"), dtype)
    assert 1e8 < rate < 1e15
    assert matmul_rate(torch.device("cpu"), dtype) == rate  # measured once
