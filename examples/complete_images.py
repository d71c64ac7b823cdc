"""Train on labelled digits, and complete the lower halves of digits under different labels.

    python examples/complete_images.py --steps 2000 --output completions.png

Takes about 3 minutes on 2 CPU cores. Prints the loss, how often the nearest training digit of a
sample has the label that was asked for, and the file of a picture. Its rows: upper halves of real
digits; their completions under the right label; under the label of the next digit; samples of all
labels without and with guidance. Needs scikit-learn, for the digits.
"""

import argparse
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torchvision.utils import save_image

from autoregressive_diffusion_pytorch import ImageAutoregressiveFlow

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("--steps", type=int, default=2000, help="training steps")
parser.add_argument("--guidance", type=float, default=2.0, help="scale of classifier-free guidance")
parser.add_argument(
    "--output", type=Path, default=Path("completions.png"), help="file of the picture"
)
args = parser.parse_args()

data = load_digits()
digits = torch.from_numpy(data.images).float().unsqueeze(1) / 16
labels = torch.from_numpy(data.target).long()

torch.manual_seed(0)
sizes = dict(dim=128, depth=4, heads=4, flow_kwargs=dict(num_noise_draws=2))
model = ImageAutoregressiveFlow(model=sizes, image_size=8, patch_size=2, channels=1, num_classes=10)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

for step in range(1, args.steps + 1):
    batch = torch.randint(len(digits), (32,))
    loss = model(digits[batch], labels=labels[batch])
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if step % 100 == 0 or step == args.steps:
        print(f"step {step}: loss {loss.item():.3f}")

first = [int((labels == label).nonzero()[0]) for label in range(10)]  # one real digit per label
upper = digits[first].clone()
upper[:, :, 4:] = 0.5

rows = [upper]
for shift in (0, 1):
    rows.append(model.complete(digits[first], keep_rows=4, labels=(torch.arange(10) + shift) % 10))
for scale in (1.0, args.guidance):
    asked = torch.arange(10).repeat_interleave(10)
    samples = model.sample(labels=asked, guidance_scale=scale)
    nearest = torch.cdist(samples.flatten(1), digits.flatten(1)).argmin(dim=1)
    print(
        f"guidance {scale:g}: {(labels[nearest] == asked).float().mean():.0%} have the right label"
    )
    rows.append(samples[::10])

save_image(torch.cat(rows).repeat_interleave(4, 2).repeat_interleave(4, 3), args.output, nrow=10)
print(args.output)
