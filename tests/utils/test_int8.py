import pytest
import torch
from torch import nn

from autoregressive_diffusion_pytorch.utils import int8
from autoregressive_diffusion_pytorch.utils.int8 import Int8Linear, quantize_linears


def bound(linear, x, levels=127):
    """How far each output (b out) can be: inputs and weights move by half a step at most."""
    weight = linear.weight.abs()
    steps = (x.abs().amax(1, keepdim=True) / 127, weight.amax(1) / levels)
    x, width = x.abs().sum(1, keepdim=True), x.shape[1]
    return steps[0] / 2 * weight.sum(1) + steps[1] / 2 * x + width / 4 * steps[0] * steps[1]


@pytest.fixture(params=[127, 63])
def levels(request, monkeypatch):
    if request.param == 127 and int8._saturates():
        pytest.skip("products of this CPU lose what exceeds 16 bits")
    monkeypatch.setattr(int8, "_saturates", lambda: request.param == 63)
    return request.param


@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_outputs_are_within_half_a_step_of_inputs_and_weights(levels, bias):
    linear, x = nn.Linear(48, 40, bias=bias), torch.randn(5, 48)
    layer = Int8Linear(linear)
    away, most = (layer(x) - linear(x)).abs(), bound(linear, x, levels)
    assert (away <= most + 1e-5).all()
    assert away.max() > most.min() / 100  # they are rounded
    assert layer.integers.abs().max() == levels
    half_a_step = linear.weight.abs().amax(1, keepdim=True) / levels / 2
    assert ((layer.weight - linear.weight).abs() <= half_a_step + 1e-6).all()


@torch.no_grad()
def test_whole_numbers_are_exact():
    linear, most = nn.Linear(32, 16), 63 if int8._saturates() else 127
    linear.weight.copy_(torch.randint(-most, most + 1, (16, 32)))
    x = torch.randint(-127, 128, (4, 32)).float()
    linear.weight[:, 0], x[:, 0] = most, 127  # a step is 1
    torch.testing.assert_close(Int8Linear(linear)(x), linear(x))


@torch.no_grad()
def test_a_vector_s_output_does_not_depend_on_the_others():
    layer, x = Int8Linear(nn.Linear(64, 32)), torch.randn(6, 64)
    x[0] *= 1000
    alone = torch.cat([layer(row) for row in x.split(1)])
    torch.testing.assert_close(layer(x), alone, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [(64,), (2, 64), (2, 3, 64), (0, 64), (2, 0, 64)])
@torch.no_grad()
def test_vectors_of_any_shape(shape):
    linear, x = nn.Linear(64, 8), torch.randn(shape)
    assert Int8Linear(linear)(x).shape == linear(x).shape


@torch.no_grad()
def test_zeros_and_what_is_not_finite():
    linear = nn.Linear(64, 8)
    linear.weight[0] = 0
    layer, x = Int8Linear(linear), torch.zeros(3, 64)
    x[1, 0], x[2, 0] = torch.inf, torch.nan
    result = layer(x)
    assert torch.equal(result[0], linear.bias)
    assert result[1:].isnan().all()


def test_layers_of_other_classes_stay_as_they_are():
    own = type("Own", (nn.Linear,), {})(4, 4)  # it may do something else
    model = nn.Sequential(nn.Linear(2, 4), nn.Sequential(nn.Linear(4, 4)), own)
    quantize_linears(model)
    assert isinstance(model[0], Int8Linear)
    assert isinstance(model[1][0], Int8Linear)
    assert model[2] is own
