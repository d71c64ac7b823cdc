"""What several tests need: networks with all parts switched on, ideal denoisers, tolerances."""

import math
import shutil

import pytest
import torch
from torch import Tensor
from torch.nn import Module

from autoregressive_diffusion_pytorch import ElucidatedDiffusion, RectifiedFlow

needs_compiler = pytest.mark.skipif(
    not shutil.which("g++") and not shutil.which("clang++"), reason="needs a C++ compiler"
)

# options of x-transformers' Decoder, by whether steps with its cache give the numbers of the full
# pass
CACHED = {
    "plain": {},
    "rotary": dict(rotary_pos_emb=True),
    "xpos": dict(rotary_xpos=True),
    "polar": dict(polar_pos_emb=True),
    "alibi": dict(alibi_pos_bias=True),
    "relative": dict(rel_pos_bias=True),
    "qk-norm": dict(attn_qk_norm=True, attn_qk_norm_dim_scale=True),
    "glu": dict(ff_glu=True, ff_swish=True),
    "flash": dict(attn_flash=True, rotary_pos_emb=True),
    "grouped-key-values": dict(attn_kv_heads=1),
    "memory-key-values": dict(attn_num_mem_kv=2),
    "latent-key-values": dict(attn_use_latent_kv=True, attn_dim_latent_kv=8),
    "window": dict(attn_max_attend_past=2),
    "rmsnorm": dict(use_rmsnorm=True),
    "layer-scale": dict(use_layerscale=True),
    "value-residual": dict(add_value_residual=True),
    "streams": dict(num_residual_streams=2),
}
UNCACHED = {
    "shifted-tokens": dict(shift_tokens=1),
    "data-dependent-alibi": dict(attn_data_dependent_alibi=True),
    "selective": dict(attn_selective=True),
}


def parameters(*dictionaries):
    return [
        pytest.param(kwargs, id=name) for kinds in dictionaries for name, kwargs in kinds.items()
    ]


def stir(module: Module, amount: float = 0.1) -> Module:
    """Moves all parameters away from their initial values, where zeros hide a part of the
    network."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(amount * torch.randn_like(parameter))
    return module


def record_steps(monkeypatch, backbone: Module) -> list[int]:
    """The batch sizes of the steps that a backbone makes from now on."""
    sizes, step = [], backbone.step

    def record(embeds, *args, **kwargs):
        sizes.append(len(embeds))
        return step(embeds, *args, **kwargs)

    monkeypatch.setattr(backbone, "step", record)
    return sizes


def reset_accelerate() -> None:
    """accelerate keeps device, precision and compiler of a process's first training for all later
    ones: not from here on."""
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


class FormulaNet(Module):
    """Stands in for the denoiser of a head: a formula of the noised token, the time and the
    condition (of width 1)."""

    def __init__(self, formula):
        super().__init__()
        self.formula = formula

    def modulate(self, times: Tensor, cond: Tensor) -> Tensor:
        return self.modulate_time(times) + self.modulate_z(cond)

    def modulate_time(self, times: Tensor) -> Tensor:
        return torch.stack((times, torch.zeros_like(times)), dim=-1)

    def modulate_z(self, cond: Tensor) -> Tensor:
        return torch.cat((torch.zeros_like(cond), cond), dim=-1)

    def denoise(self, noised: Tensor, modulation: Tensor) -> Tensor:
        return self.formula(noised, modulation[..., :1], modulation[..., 1:])


def ideal_head(
    head_class: type, dim_input: int, posterior_mean, **kwargs
) -> ElucidatedDiffusion | RectifiedFlow:
    """A head that is right: `posterior_mean(noised, sigma, cond)` is E[token | token + sigma ·
    noise]; give it double precision."""

    # F of Karras et al. 2022, eq. 7, solved for the denoised token
    def network_of_diffusion(scaled, times, cond):
        sigma = (4 * times).exp()
        variance = sigma**2 + 0.25
        noised = scaled * variance.sqrt()
        return (posterior_mean(noised, sigma, cond) - 0.25 / variance * noised) / (
            sigma * 0.5 / variance.sqrt()
        )

    def velocity(noised, times, cond):
        times = times.clamp(1e-7, 1 - 1e-7)
        clean = posterior_mean(noised / times, (1 - times) / times, cond)
        return (clean - noised) / (1 - times)

    sizes = dict(width=1, depth=1)
    if head_class is ElucidatedDiffusion:
        head = ElucidatedDiffusion(dim_input, 1, **sizes, sigma_data=0.5, **kwargs)
        head.net = FormulaNet(network_of_diffusion)
    else:
        head = RectifiedFlow(dim_input, 1, **sizes, model_output_clean=False, **kwargs)
        head.net = FormulaNet(velocity)
    return head


def train(head, draw_batch, steps, learning_rate=5e-3):
    """Trains a head on `draw_batch() -> tokens, cond`."""
    optimizer = torch.optim.AdamW(head.parameters(), lr=learning_rate, weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, total_steps=steps, pct_start=0.1
    )
    for _ in range(steps):
        head(*draw_batch()).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return head


# Five standard errors: a right sampler fails one such comparison in two million
STANDARD_ERRORS = 5


def assert_mean(samples: Tensor, expected: Tensor | float, extra: float = 0.0) -> None:
    """The mean over the first axis is as expected, within the error that the number of samples
    allows (and `extra`)."""
    error = (samples.mean(dim=0) - expected).abs()
    allowed = STANDARD_ERRORS * samples.std(dim=0) / math.sqrt(len(samples)) + extra
    assert (error <= allowed).all(), (
        f"mean {samples.mean(dim=0)}, expected {expected} within {allowed}"
    )


def assert_std(samples: Tensor, expected: Tensor | float, extra: float = 0.0) -> None:
    """The standard deviation over the first axis of Gaussian samples is as expected, within their
    error (and `extra`)."""
    std = samples.std(dim=0)
    allowed = STANDARD_ERRORS * std / math.sqrt(2 * len(samples)) + extra
    assert ((std - expected).abs() <= allowed).all(), (
        f"std {std}, expected {expected} within {allowed}"
    )
