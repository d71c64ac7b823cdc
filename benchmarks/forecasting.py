"""Forecasts of half a day of Italy's power demand, given the other half.

    python benchmarks/forecasting.py --minutes 3

Needs the extra [demo]: aeon ships 1,096 days of 24 hours (Keogh et al. 2006), each of mean 0 and
variance 1. A fifth of them is held out. A model that is trained on the others draws 100
continuations of the first 12 hours of each held-out day. The table compares them by the continuous
ranked probability score (CRPS; Gneiting & Raftery 2007, eq. 21, in the unbiased form), in standard
deviations, less is better, with

- seasonal naive: the same hours of 100 days of the training part at random;
- linear Gaussian: the later hours given the earlier ones by linear regression, with the full
  covariance of the residuals: the exact forecast of any Gaussian process on a day;
- nearest neighbours: the same hours of the training days whose first halves are nearest, as many as
  are best on the training part.

and by the mean absolute error of the median, and the share of hours within the central 80 %.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from aeon.datasets import load_italy_power_demand
from torch import Tensor

from autoregressive_diffusion_pytorch import AutoregressiveFlow, SequenceTrainer
from autoregressive_diffusion_pytorch.utils.rng import generator_for

HALF, COUNT = 12, 100
NEIGHBOURS = (5, 10, 20, 50, 100)


def days() -> tuple[Tensor, Tensor]:
    """Days to train on (n 24), and held-out ones."""
    parts = [torch.from_numpy(load_italy_power_demand(split=s)[0][:, 0]) for s in ("train", "test")]
    found = torch.cat(parts).float()
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(0))
    held_out = len(found) // 5
    return found[order[held_out:]], found[order[:held_out]]


def crps(drawn: Tensor, real: Tensor) -> float:
    """Of forecasts (days count hours) of real hours (days hours), the mean over all."""
    error = (drawn - real.unsqueeze(1)).abs().mean(dim=1)
    ordered, count = drawn.sort(dim=1).values, drawn.shape[1]
    # the mean distance of two of them, by their order
    weight = 2 * torch.arange(1, count + 1).view(1, -1, 1) - count - 1
    spread = (weight * ordered).sum(dim=1) * 2 / (count * (count - 1))
    return (error - spread / 2).mean().item()


def row(name: str, drawn: Tensor, real: Tensor) -> str:
    low, median, high = drawn.quantile(torch.tensor([0.1, 0.5, 0.9]), dim=1)
    within = ((real >= low) & (real <= high)).float().mean()
    error = (median - real).abs().mean()
    return f"| {name} | {crps(drawn, real):.4f} | {error:.4f} | {within:.3f} |"


def linear_gaussian(known: Tensor, given: Tensor) -> Tensor:
    x, y = known[:, :HALF].double(), known[:, HALF:].double()
    ones = torch.ones(len(x), 1).double()
    x = torch.cat((x, ones), dim=1)
    # of a day's mean of 0 the last hour would follow from the others: a little ridge
    weights = torch.linalg.solve(x.T @ x + 1e-3 * torch.eye(x.shape[1]).double(), x.T @ y)
    rest = y - x @ weights
    covariance = rest.T @ rest / (len(x) - x.shape[1]) + 1e-6 * torch.eye(HALF).double()
    mean = torch.cat((given.double(), torch.ones(len(given), 1).double()), dim=1) @ weights
    factor = torch.linalg.cholesky(covariance)
    noise = torch.randn(len(given), COUNT, HALF, generator=generator_for(1)).double()
    return (mean.unsqueeze(1) + noise @ factor.T).float()


def nearest(known: Tensor, given: Tensor, count: int, skip: int = 0) -> Tensor:
    found = torch.cdist(given, known[:, :HALF]).topk(count + skip, largest=False).indices
    return known[found[:, skip:], HALF:]


def train(known: Tensor, minutes: float, folder: Path) -> AutoregressiveFlow:
    torch.manual_seed(0)
    model = AutoregressiveFlow(
        dim=64,
        dim_input=1,
        max_seq_len=2 * HALF,
        depth=3,
        heads=4,
        dim_head=16,
        num_recent=HALF,
        flow_kwargs=dict(num_noise_draws=4),
        decoder_kwargs=dict(attn_dropout=0.1, ff_dropout=0.1),
    )
    trainer = SequenceTrainer(
        model,
        dataset=known[100:].unsqueeze(-1),
        validation_dataset=known[:100].unsqueeze(-1),
        num_train_steps=100_000,
        max_minutes=minutes,
        learning_rate=1e-3,
        batch_size=64,
        checkpoint_every=200,
        save_results_every=100_000,
        checkpoints_folder=folder / "checkpoints",
        results_folder=folder / "results",
        log_with=None,
    )
    trainer()
    return AutoregressiveFlow.from_pretrained(folder)  # at its lowest validation loss


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=3.0, help="of training")
    args = parser.parse_args()
    known, held_out = days()
    given, real = held_out[:, :HALF], held_out[:, HALF:]
    with tempfile.TemporaryDirectory() as folder:
        model = train(known, args.minutes, Path(folder))
    prompts = given.unsqueeze(-1)
    generator = torch.Generator().manual_seed(0)
    drawn = model.sample(COUNT * len(given), prompts, generator=generator)
    drawn = drawn[:, HALF:, 0].view(len(given), COUNT, HALF)
    at_random = torch.randint(len(known), (len(given), COUNT), generator=generator_for(2))
    scores = {k: crps(nearest(known, known[:, :HALF], k, 1), known[:, HALF:]) for k in NEIGHBOURS}
    best = min(scores, key=scores.get)

    print(f"{len(held_out)} held-out days, {COUNT} forecasts of each\n")
    print("| forecast | CRPS | error of the median | within the central 80 % |")
    print("| --- | --- | --- | --- |")
    print(row("flow", drawn, real))
    print(row("seasonal naive", known[at_random][..., HALF:], real))
    print(row("linear Gaussian", linear_gaussian(known, given), real))
    print(row(f"{best} nearest neighbours", nearest(known, given, best), real))


if __name__ == "__main__":
    main()
