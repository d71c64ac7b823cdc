"""The heads at equal training time: what each learns of a distribution that is known.

    python benchmarks/heads.py
    python benchmarks/heads.py --widths 2 16 --heads flow_map energy --minutes 3

Tokens are of a mixture of two equal modes at +-0.6 along an axis that the condition gives, with a
spread of 0.1 along all axes. Each head trains for the same time of one core, and draws with
several numbers of evaluations of its network (NFE) per token:

- near: the share of tokens within three spreads of a mode, along the axis of the modes and across
  it.
- along, across, others: the spread along the axis of the modes, across it in the plane of the
  conditions, and along the other axes, in units of what it should be. Tokens between the modes
  count into the first.
- mode: the share of the upper mode, where it should be 0.5.

Then the heads draw a Gaussian AR(1) process, x_i = 0.9 x_(i-1) + noise, of 64 tokens, each the
condition of the next: its standard deviation and the correlation of neighbours, in units of what
they should be.

Images at equal time: the sets "heads" and "heads-4" of `quality.py`, and `digits.py`.
"""

import argparse
import copy
import json
import math
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import Module

from autoregressive_diffusion_pytorch.heads import HEADS
from autoregressive_diffusion_pytorch.heads.head import Head, head_class

MODE, SPREAD = 0.6, 0.1
CORRELATION, LENGTH = 0.9, 64
EVALUATIONS = (1, 2, 4, 8, 16)
BATCH_SIZE, LEARNING_RATE = 256, 2e-3


def draw_mixture(count: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens (n d), conditions (n 2), and the axes of the modes (n d)."""
    angle = 2 * math.pi * torch.rand(count)
    z = torch.stack((angle.cos(), angle.sin()), dim=-1)
    axis = torch.cat((z, z.new_zeros(count, width - 2)), dim=-1)
    sign = torch.where(torch.rand(count, 1) < 0.5, -1.0, 1.0)
    return MODE * sign * axis + SPREAD * torch.randn(count, width), z, axis


def draw_pair(count: int) -> tuple[Tensor, Tensor]:
    """Tokens (n 1) of the AR(1) process, of unit variance, and those before them."""
    before = torch.randn(count, 1)
    noise = math.sqrt(1 - CORRELATION**2) * torch.randn(count, 1)
    return CORRELATION * before + noise, before


def train(head: Head, draw_batch: Callable[[], tuple], seconds: float) -> tuple[Module, int]:
    """The average of a head's weights after so much time of the processor, and its steps."""
    head.measure(draw_batch(4096)[0])
    average = copy.deepcopy(head).eval()
    optimizer = torch.optim.AdamW(head.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95))
    started, steps = time.process_time(), 0
    while (done := (time.process_time() - started) / seconds) < 1:
        rate = LEARNING_RATE * min(1, (steps + 1) / 100, 4 * (1 - done) + 0.01)
        optimizer.param_groups[0]["lr"] = rate
        tokens, z, *_ = draw_batch(BATCH_SIZE)
        head(tokens, z).mean().backward()
        torch.nn.utils.clip_grad_norm_(head.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        steps += 1
        pairs = (list(m.parameters()) for m in (average, head))
        with torch.no_grad():
            torch._foreach_lerp_(*pairs, max(10 / (steps + 10), 0.01))
    return average, steps


def samplings(head: Head) -> dict[str, dict]:
    """Options of `sample` by their names."""
    if "num_steps" not in head.sampling_options():
        return {"1": {}}
    if "map" in head.NUM_SAMPLE_STEPS:
        own = {f"{n}": dict(num_steps=n) for n in EVALUATIONS}
        return own | {"16, flow": dict(num_steps=16, solver="dpmpp_2m")}
    return {f"{n}": dict(num_steps=n) for n in EVALUATIONS}


def of_mixture(tokens: Tensor, axis: Tensor) -> dict[str, float]:
    across_axis = torch.stack((-axis[:, 1], axis[:, 0]), dim=-1)
    along = (tokens * axis).sum(dim=-1)
    across = (tokens[:, :2] * across_axis).sum(dim=-1)
    from_mode = along.abs() - MODE
    near = (from_mode.abs() < 3 * SPREAD) & (across.abs() < 3 * SPREAD)
    others = tokens[:, 2:].std() / SPREAD if tokens.shape[-1] > 2 else torch.tensor(math.nan)
    values = (
        near.float().mean(),
        from_mode.std() / SPREAD,
        across.std() / SPREAD,
        others,
        (along > 0).float().mean(),
    )
    names = ("near", "along", "across", "others", "mode")
    return {name: value.item() for name, value in zip(names, values, strict=True)}


def of_chain(head: Head, count: int, **options) -> dict[str, float]:
    draw, tokens = head.sampler(**options), [torch.randn(count, 1)]
    for _ in range(LENGTH):
        tokens.append(draw(tokens[-1]))
    before, last = tokens[-2:]
    correlation = torch.corrcoef(torch.cat((before, last), dim=-1).T)[0, 1]
    return dict(std=last.std().item(), correlation=correlation.item() / CORRELATION)


def show(name: str, text: str, steps: int, seconds: float, values: dict[str, float]) -> None:
    numbers = "".join(f"{'-' if math.isnan(v) else f'{v:.3f}':>13}" for v in values.values())
    print(f"{name:24}{steps:8}{text:>10}{1e6 * seconds:12.1f}{numbers}", flush=True)


def header(*columns: str) -> None:
    titles = "".join(f"{column:>13}" for column in columns)
    print(f"\n{'':24}{'steps':>8}{'NFE':>10}{'us/token':>12}{titles}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--heads", nargs="+", default=list(HEADS), metavar="HEAD")
    parser.add_argument("--widths", nargs="*", type=int, default=[2, 16, 48, 192])
    parser.add_argument("--minutes", type=float, default=2.0, help="of one core, for each head")
    parser.add_argument("--count", type=int, default=20_000, help="tokens for each figure")
    parser.add_argument("--head-kwargs", type=json.loads, default={}, help="of all heads, as JSON")
    parser.add_argument("--no-chain", action="store_true", help="leave out the AR(1) process")
    args = parser.parse_args()
    torch.set_num_threads(1)

    def trained(name: str, width: int, dim_z: int, draw_batch: Callable, seconds: float):
        torch.manual_seed(0)
        size = dict(width=256 if width >= 64 else 128, depth=3)
        head = head_class(name)(width, dim_z, **size, **args.head_kwargs)
        return train(head, draw_batch, seconds)

    seconds = 60 * args.minutes
    for width in args.widths:
        header("near", "along", "across", "others", "mode")
        for name in args.heads:
            head, steps = trained(name, width, 2, lambda n: draw_mixture(n, width), seconds)  # noqa: B023
            for text, options in samplings(head).items():
                _, z, axis = draw_mixture(args.count, width)
                started = time.process_time()
                tokens = head.sample(z, **options)
                taken = (time.process_time() - started) / args.count
                show(f"{name}, width {width}", text, steps, taken, of_mixture(tokens, axis))
    if not args.no_chain:
        header("std", "correlation")
        for name in args.heads:
            head, steps = trained(name, 1, 1, draw_pair, seconds / 2)
            for text, options in samplings(head).items():
                started = time.process_time()
                values = of_chain(head, args.count, **options)
                taken = (time.process_time() - started) / args.count / LENGTH
                show(f"{name}, AR(1)", text, steps, taken, values)


if __name__ == "__main__":
    main()
