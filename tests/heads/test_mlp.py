import pytest
import torch
from helpers import stir

from autoregressive_diffusion_pytorch import MLP


def small_mlp(**kwargs):
    return MLP(dim_z=6, dim_token=4, **(dict(depth=2, width=16) | kwargs))


def test_output_is_zero_at_first():
    net = small_mlp()
    output = net(torch.randn(3, 5, 4), times=torch.rand(3, 5), z=torch.randn(3, 5, 6))
    assert output.shape == (3, 5, 4)
    assert (output == 0).all()


@pytest.mark.parametrize("what", ["noised", "times", "z"])
def test_output_depends_on_each_input(what):
    net = stir(small_mlp())
    inputs = dict(noised=torch.randn(3, 4), times=torch.rand(3), z=torch.randn(3, 6))
    changed = inputs | {what: inputs[what] + 0.1}
    difference = net(**changed) - net(**inputs)
    assert (difference.abs().amax(dim=-1) > 1e-3).all()


def test_modulations_of_time_and_condition_are_made_apart():
    net = stir(small_mlp()).double()
    noised, z = torch.randn(3, 4).double(), torch.randn(3, 6).double()
    times = torch.rand(7)
    of_times, of_z = net.modulate_time(times), net.modulate_z(z)
    for time, of_time in zip(times, of_times, strict=True):
        one = net(noised, times=time.expand(3), z=z)
        torch.testing.assert_close(net.denoise(noised, of_time + of_z), one)


def test_matches_the_equations_of_adaptive_layer_norm():
    net = stir(small_mlp(depth=2)).double()
    noised, times, z = torch.randn(4).double(), torch.rand(()), torch.randn(6).double()

    def norm(x):
        return (x - x.mean()) / (x.var(unbiased=False) + 1e-6).sqrt()

    def mlp(layers, x):
        lower, *_, upper = layers
        return upper(torch.nn.functional.silu(lower(x)))

    angles = times * 1000 * 10_000 ** (-torch.arange(128) / 128)
    features = torch.cat((angles.cos(), angles.sin())).double()
    modulation = mlp(net.time_modulation, features) + mlp(net.cond_modulation, z)
    shift, scale, gate, last_shift, last_scale = modulation.chunk(5)
    x = net.proj_in(noised)
    for block in net.blocks:
        x = x + gate * mlp(block.mlp, norm(x) * scale + shift)
    expected = net.proj_out(norm(x) * last_scale + last_shift)

    torch.testing.assert_close(net(noised, times=times, z=z), expected, rtol=1e-5, atol=1e-6)


def test_scales_start_at_one_and_shifts_and_gates_at_zero():
    net = small_mlp()
    modulation = net.modulate(torch.rand(3), torch.randn(3, 6))
    assert torch.equal(modulation[0, :, 0], torch.tensor([0.0, 1.0, 0.0, 0.0, 1.0]))
    assert torch.equal(modulation, modulation[:1, :, :1].expand_as(modulation))


def test_all_parameters_get_a_gradient():
    net = stir(small_mlp())
    net(torch.randn(3, 4), times=torch.rand(3), z=torch.randn(3, 6)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_time_is_not_rounded_with_the_weights():
    net = stir(small_mlp())
    inputs = dict(
        noised=torch.randn(3, 4), times=torch.tensor([0.101, 0.503, 0.907]), z=torch.randn(3, 6)
    )
    exact = net(**inputs)
    rounded = net.bfloat16()(**inputs).float()
    torch.testing.assert_close(rounded, exact, rtol=0, atol=0.05 * exact.abs().max().item())


def test_a_time_is_embedded_in_the_network_s_precision_at_least_a_single_one():
    net = MLP(3, 2, depth=1, width=8)
    time = torch.tensor(1 / 3, dtype=torch.float64)
    seen = []
    net.time_features.register_forward_hook(lambda module, args, output: seen.append(output))
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        net.to(dtype).modulate_time(time)
        net.modulate_time(time.float())
    exact = torch.cos(1000 * time)
    assert [output.dtype for output in seen] == 4 * [torch.float32] + 2 * [torch.float64]
    assert all(torch.equal(output, seen[0]) for output in seen[1:4])
    torch.testing.assert_close(seen[4].flatten()[0], exact, rtol=0, atol=1e-12)
