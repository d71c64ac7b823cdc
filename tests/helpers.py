"""What several tests need: networks with all parts switched on, ideal denoisers, tolerances."""

import math

import torch
from torch import Tensor
from torch.nn import Module

from autoregressive_diffusion_pytorch import ElucidatedDiffusion, RectifiedFlow


def stir(module: Module, amount: float = 0.1) -> Module:
    """Moves all parameters away from their initial values, where zeros hide a part of the network."""
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
    """accelerate keeps device, precision and compiler of a process's first training for all later ones: not from here on."""
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


class FormulaNet(Module):
    """Stands in for the denoiser of a head: a formula of the noised token, the time and the condition (of width 1)."""

    def __init__(self, dim_input: int, formula):
        super().__init__()
        self.dim_input = dim_input
        self.formula = formula

    def modulate(self, times: Tensor, cond: Tensor) -> Tensor:
        return self.modulate_time(times) + self.modulate_cond(cond)

    def modulate_time(self, times: Tensor) -> Tensor:
        return torch.stack((times, torch.zeros_like(times)), dim=-1)

    def modulate_cond(self, cond: Tensor) -> Tensor:
        return torch.cat((torch.zeros_like(cond), cond), dim=-1)

    def denoise(self, noised: Tensor, modulation: Tensor) -> Tensor:
        return self.formula(noised, modulation[..., :1], modulation[..., 1:])


def ideal_head(head_class: type, dim_input: int, posterior_mean, **kwargs) -> ElucidatedDiffusion | RectifiedFlow:
    """A head that is right: `posterior_mean(noised, sigma, cond)` is E[token | token + sigma · noise]; give it double precision."""

    def network_of_diffusion(scaled, times, cond):  # F of Karras et al. 2022, eq. 7, solved for the denoised token
        sigma = (4 * times).exp()
        variance = sigma**2 + 0.25
        noised = scaled * variance.sqrt()
        return (posterior_mean(noised, sigma, cond) - 0.25 / variance * noised) / (sigma * 0.5 / variance.sqrt())

    def velocity(noised, times, cond):
        times = times.clamp(1e-7, 1 - 1e-7)
        clean = posterior_mean(noised / times, (1 - times) / times, cond)
        return (clean - noised) / (1 - times)

    if head_class is ElucidatedDiffusion:
        return ElucidatedDiffusion(FormulaNet(dim_input, network_of_diffusion), sigma_data=0.5, **kwargs)
    return RectifiedFlow(FormulaNet(dim_input, velocity), model_output_clean=False, **kwargs)


# Five standard errors: a right sampler fails one such comparison in two million
STANDARD_ERRORS = 5


def assert_mean(samples: Tensor, expected: Tensor | float, extra: float = 0.0) -> None:
    """The mean over the first axis is as expected, within the error that the number of samples allows (and `extra`)."""
    error = (samples.mean(dim=0) - expected).abs()
    allowed = STANDARD_ERRORS * samples.std(dim=0) / math.sqrt(len(samples)) + extra
    assert (error <= allowed).all(), f"mean {samples.mean(dim=0)}, expected {expected} within {allowed}"


def assert_std(samples: Tensor, expected: Tensor | float, extra: float = 0.0) -> None:
    """The standard deviation over the first axis of Gaussian samples is as expected, within their error (and `extra`)."""
    std = samples.std(dim=0)
    allowed = STANDARD_ERRORS * std / math.sqrt(2 * len(samples)) + extra
    assert ((std - expected).abs() <= allowed).all(), f"std {std}, expected {expected} within {allowed}"
