"""What the sampler's own error is: tokens drawn with denoisers that are exact, for each number of
steps.

    python benchmarks/ideal.py
    python benchmarks/ideal.py --solver heun --steps 3 5 9

- std: the spread of a Gaussian of so many standard deviations of the data, in units of what it
  should be.
- modes: the share of tokens of two modes at -0.8 and 0.8, of width 0.1 (the data has 0.5), within
  three widths of one.
- share: the share of the lower mode, where it should be 0.1.
- chain: the spread of an AR(1) process with this correlation, after so many tokens that it no
  longer changes, in units of what it should be.
"""

import argparse
import math

import torch
from torch import Tensor

from autoregressive_diffusion_pytorch.heads.solvers import SOLVERS, karras_schedule

SIGMA_DATA = 0.5
STDS = (0.1, 0.2, 0.5, 1.0, 2.0)
CORRELATIONS = (0.8, 0.9, 0.97)
# the quantiles of the normal distribution stand for its samples
NOISE = torch.special.ndtri((torch.arange(20_001, dtype=torch.float64) + 0.5) / 20_001)


def gaussian(std: float, mean: float = 0.0):
    return lambda x, sigma: mean + std**2 / (std**2 + sigma**2) * (x - mean)


def two_modes(share: float, mode: float = 0.8, width: float = 0.1):
    half_log_odds = 0.5 * math.log(share / (1 - share))

    def denoise(x: Tensor, sigma: float) -> Tensor:
        variance = width**2 + sigma**2
        mean = -mode * torch.tanh(half_log_odds - mode * x / variance)
        return mean + width**2 / variance * (x - mean)

    return denoise


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--solver", choices=list(SOLVERS), default="dpmpp_2m")
    parser.add_argument("--steps", nargs="+", type=int, default=[4, 5, 6, 7, 8, 10, 12, 16, 24, 48])
    args = parser.parse_args()
    names = (
        [f"std {std:g}" for std in STDS]
        + ["modes", "share"]
        + [f"chain {c:g}" for c in CORRELATIONS]
    )
    print("steps" + "".join(f"{name:>11}" for name in names))
    for num_steps in args.steps:

        def draw(denoise) -> Tensor:
            sigmas = karras_schedule(num_steps, SIGMA_DATA)  # noqa: B023 - called at once
            return SOLVERS[args.solver](denoise, lambda: NOISE, sigmas)

        row = [draw(gaussian(std * SIGMA_DATA)).std().item() / (std * SIGMA_DATA) for std in STDS]
        row.append(((draw(two_modes(0.5)).abs() - 0.8).abs() <= 0.3).double().mean().item())
        row.append((draw(two_modes(0.1)) < 0).double().mean().item())
        for correlation in CORRELATIONS:
            # a token is linear in the mean it is told and in its noise
            tokens = draw(gaussian(SIGMA_DATA * math.sqrt(1 - correlation**2), mean=1.0))
            gain = correlation * tokens.mean().item()
            row.append(tokens.std().item() / math.sqrt(1 - gain**2) / SIGMA_DATA)
        print(f"{num_steps:5}" + "".join(f"{value:11.3f}" for value in row))


if __name__ == "__main__":
    main()
