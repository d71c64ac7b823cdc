"""Train a flow model on 1,797 handwritten digits, and draw new ones.

    python examples/train_digits.py --steps 2000 --folder runs/example

Takes about 3 minutes on 2 CPU cores. Prints the training loss, the validation loss and the file of
the last grid of samples. Needs scikit-learn, for the digits.
"""

import argparse
from pathlib import Path

import torch
from sklearn.datasets import load_digits

from autoregressive_diffusion_pytorch import ImageAutoregressiveFlow, ImageTrainer

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("--steps", type=int, default=2000, help="training steps")
parser.add_argument("--dim", type=int, default=128, help="width of the transformer")
parser.add_argument(
    "--folder", type=Path, default=Path("runs/example"), help="for checkpoints, grids and the log"
)
args = parser.parse_args()

# images (n c h w) with values in [0, 1]; every tenth is held out
digits = torch.from_numpy(load_digits().images).float().unsqueeze(1) / 16
held_out = torch.arange(len(digits)) % 10 == 0

torch.manual_seed(0)  # for the weights

model = ImageAutoregressiveFlow(
    model=dict(dim=args.dim, depth=4, heads=4, flow_kwargs=dict(num_noise_draws=2)),
    image_size=8,
    patch_size=2,  # 16 tokens of 4 numbers
    channels=1,
)

trainer = ImageTrainer(
    model,
    dataset=digits[~held_out],
    validation_dataset=digits[held_out],
    num_train_steps=args.steps,
    learning_rate=2e-3,
    batch_size=32,
    num_samples=64,
    checkpoints_folder=args.folder / "checkpoints",
    results_folder=args.folder / "samples",
    logs_folder=args.folder / "logs",
)

trainer()

# the last checkpoint holds the averaged weights
model = ImageAutoregressiveFlow.from_pretrained(
    args.folder / "checkpoints" / f"checkpoint.{trainer.step}"
)
samples = model.sample(batch_size=16, generator=torch.Generator().manual_seed(1))

print(f"contrast of samples {samples.std():.3f}, of real digits {digits.std():.3f}")
print(args.folder / "samples" / f"results.{trainer.step}.png")
