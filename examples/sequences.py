"""Train on sequences with a known distribution, and compare the samples with it.

    python examples/sequences.py --steps 1000

The sequences are AR(1) processes: x[i] = rho · x[i - 1] + sqrt(1 - rho²) · noise, of standard
deviation 1 and with a correlation of rho between neighbours. Takes about a minute on 2 CPU cores.
Prints the loss, and both statistics of samples beside those of the process.
"""

import argparse

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from autoregressive_diffusion_pytorch import AutoregressiveFlow

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("--steps", type=int, default=1000, help="training steps")
parser.add_argument("--rho", type=float, default=0.9, help="correlation between neighbours")
parser.add_argument("--count", type=int, default=1000, help="samples to draw")
args = parser.parse_args()

LENGTH, WIDTH = 16, 2


def process(count: int) -> torch.Tensor:
    """Sequences (count LENGTH WIDTH)."""
    x = [torch.randn(count, WIDTH)]
    for _ in range(LENGTH - 1):
        x.append(args.rho * x[-1] + (1 - args.rho**2) ** 0.5 * torch.randn(count, WIDTH))
    return torch.stack(x, dim=1)


def statistics(seq: torch.Tensor) -> str:
    neighbours = torch.stack((seq[:, :-1].flatten(), seq[:, 1:].flatten()))
    correlation = torch.corrcoef(neighbours)[0, 1]
    return f"std of the last token {seq[:, -1].std():.3f}, correlation {correlation:.3f}"


torch.manual_seed(0)
model = AutoregressiveFlow(
    dim=64, dim_input=WIDTH, max_seq_len=LENGTH, depth=2, heads=4, dim_head=16
)
average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.99))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

for step in range(1, args.steps + 1):
    loss = model(process(128))
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    average.update_parameters(model)
    if step % 100 == 0 or step == args.steps:
        print(f"step {step}: loss {loss.item():.3f}")

samples = average.module.sample(batch_size=args.count)

print(f"process: {statistics(process(10_000))}")
print(f"samples: {statistics(samples)}")
