"""Losses and log-densities are those of version 1.0.0, which had them in two heads: its numbers, to
a millionth."""

import pytest
import torch

from autoregressive_diffusion_pytorch import ElucidatedDiffusion, RectifiedFlow
from autoregressive_diffusion_pytorch.heads.mlp import SinusoidalEmbedding

RECORDED = [
    (
        ElucidatedDiffusion,
        {},
        [221.8448361, 43.9318398, 128.6646405],
        [-565.6700646, -509.9823607, -532.781743],
    ),
    (
        RectifiedFlow,
        {},
        [167.2343648, 93.0037975, 15.74177633],
        [-279.3579933, -242.4503801, -254.6767763],
    ),
    (
        RectifiedFlow,
        dict(time_distribution="uniform"),
        [939.433847, 19.48463461, 434.4702348],
        [-279.3579933, -242.4503801, -254.6767763],
    ),
    (
        RectifiedFlow,
        dict(model_output_clean=False),
        [135.4599108, 138.0331272, 44.35732572],
        [-141.2532615, -128.0423994, -133.2727543],
    ),
]


def filled(net):
    """All parameters by a formula: nothing depends on how they are initialised."""
    with torch.no_grad():
        for i, (_, parameter) in enumerate(sorted(net.named_parameters())):
            waves = torch.sin(1.7 * torch.arange(parameter.numel(), dtype=parameter.dtype) + i)
            parameter.copy_(0.3 * waves.view_as(parameter))
    return net


@pytest.mark.parametrize(("head_class", "kwargs", "losses", "log_probs"), RECORDED)
def test_losses_and_log_densities_of_version_1(head_class, kwargs, losses, log_probs, monkeypatch):
    # it embedded times in single precision, whatever the network's
    embed = SinusoidalEmbedding.forward
    monkeypatch.setattr(
        SinusoidalEmbedding, "forward", lambda self, times: embed(self, times.float())
    )
    # a head's parameters had the same names with its own prefix: sorted, the same order
    head = head_class(4, 6, depth=2, width=16, sigma_data=0.5, **kwargs).double()
    filled(head.net)
    tokens = torch.arange(12).double().sin().view(3, 4)
    z = torch.arange(18).double().cos().view(3, 6)
    torch.manual_seed(0)
    assert head(tokens, z).tolist() == pytest.approx(losses, rel=1e-6)
    assert head.log_prob(tokens, z, solver="rk4", num_steps=8).tolist() == pytest.approx(
        log_probs, rel=1e-6
    )
