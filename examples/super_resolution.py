"""Learn to draw images of 64 x 64 pixels that fit their reduction to 16 x 16.

    python examples/super_resolution.py ~/photos --minutes 60 --output super-resolution.png

What bicubic interpolation of the small image lacks is drawn in patches of 8 x 8 pixels, one by one,
by a model that attends to the small image: a vector for each patch holds the 2 x 2 pixels that lie
under it and those around them. The transformer adds no positional encoding to vectors, so each
holds its row and column. Every tenth image is held out. Prints the validation loss, the PSNR of
bicubic interpolation, of samples and of their mean on held-out images, and that of each, reduced to
16 x 16 again, against the small image. Writes a picture of some of them, a row each: the small
image, bicubic interpolation, three samples, the real image.
"""

import argparse
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset, Subset
from torchvision.utils import save_image

from autoregressive_diffusion_pytorch import ImageAutoregressiveFlow, ImageDataset, ImageTrainer

FACTOR, PATCH = 4, 8  # pixels of the image to one of the small image, and to a side of a token
SMALL_PATCH = PATCH // FACTOR
GAIN = 4  # of details: four times what is around grey fills the range of images

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("folder", type=Path, help="folder of images")
parser.add_argument("--steps", type=int, default=20_000, help="training steps")
parser.add_argument("--minutes", type=float, help="end the training after this time")
parser.add_argument("--size", type=int, default=64, help="height and width of the images")
parser.add_argument("--dim", type=int, default=256, help="width of the transformer")
parser.add_argument("--count", type=int, default=64, help="held-out images to measure on")
parser.add_argument("--run", type=Path, default=Path("runs/super-resolution"))
parser.add_argument("--output", type=Path, default=Path("super-resolution.png"))
args = parser.parse_args()


def reduce(images: Tensor) -> Tensor:
    """Images (b c h w) over `FACTOR` times fewer rows and columns, each the mean of a square."""
    return F.avg_pool2d(images, FACTOR)


def bicubic(small: Tensor) -> Tensor:
    return F.interpolate(small, scale_factor=FACTOR, mode="bicubic").clamp(0, 1)


def vectors(small: Tensor) -> Tensor:
    """What lies under and around each token in small images (b c h w), and where: (b m d)."""
    rows, columns = (side // SMALL_PATCH for side in small.shape[-2:])
    around = F.pad(4 * (small - 0.5), (1, 1, 1, 1), mode="replicate")  # of unit scale
    patches = F.unfold(around, SMALL_PATCH + 2, stride=SMALL_PATCH).transpose(1, 2)
    row, column = torch.eye(rows).repeat_interleave(columns, 0), torch.eye(columns).repeat(rows, 1)
    places = torch.cat((row, column), dim=1)
    return torch.cat((patches, places.expand(len(patches), -1, -1)), dim=-1)


def details(images: Tensor) -> Tensor:
    """What bicubic interpolation of the reduction lacks, as images (b c h w) around grey."""
    return (0.5 + GAIN / 2 * (images - bicubic(reduce(images)))).clamp(0, 1)


def with_details(small: Tensor, drawn: Tensor) -> Tensor:
    """The images of small ones and details."""
    return (bicubic(small) + 2 / GAIN * (drawn - 0.5)).clamp(0, 1)


class Pairs(Dataset):
    """The details of images, with the vectors of their reduction."""

    def __init__(self, images: Dataset):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        image = self.images[index].unsqueeze(0)
        return dict(image=details(image)[0], cond=vectors(reduce(image))[0])


def psnr(images: Tensor, others: Tensor) -> float:
    """The mean peak signal-to-noise ratio of images (b c h w) in [0, 1], in decibels."""
    errors = (images - others).square().flatten(1).mean(dim=1).clamp(min=1e-10)
    return -10 * errors.log10().mean().item()


images = ImageDataset(args.folder, args.size, cache_in_memory=True)
held_out = Subset(images, range(0, len(images), 10))
kept = Subset(images, [i for i in range(len(images)) if i % 10])
pairs = Pairs(kept)

torch.manual_seed(0)  # for the weights
model = ImageAutoregressiveFlow(
    model=dict(dim=args.dim, depth=4, heads=4, mlp_width=2 * args.dim, cross_attend=True),
    image_size=args.size,
    patch_size=PATCH,
    dim_cond=pairs[0]["cond"].shape[-1],
)
trainer = ImageTrainer(
    model,
    dataset=pairs,
    validation_dataset=Pairs(held_out),
    num_train_steps=args.steps,
    max_minutes=args.minutes,
    learning_rate=1e-3,
    batch_size=16,
    checkpoints_folder=args.run / "checkpoints",
    results_folder=args.run / "samples",
    logs_folder=args.run / "logs",
    resume="auto",
)
trainer()

model = ImageAutoregressiveFlow.from_pretrained(args.run)  # the best checkpoint
count = min(args.count, len(held_out))
real = torch.stack([held_out[i * len(held_out) // count] for i in range(count)])
small = reduce(real)
samples = [
    with_details(small, model.sample(cond=vectors(small), generator=generator))
    for generator in map(torch.Generator().manual_seed, range(8))
]
mean = torch.stack(samples).mean(dim=0)
drawings = {"bicubic": bicubic(small), "samples": samples[0], "mean of 8 samples": mean}
for name, drawn in drawings.items():
    again = psnr(reduce(drawn), small)
    print(f"{name}: PSNR {psnr(drawn, real):.2f} dB, reduced again {again:.2f} dB")

nearest = F.interpolate(small, scale_factor=FACTOR, mode="nearest")
columns = (nearest, bicubic(small), *samples[:3], real)
picture = torch.stack(columns, dim=1)[:: math.ceil(count / 6)]
save_image(picture.flatten(0, 1), args.output, nrow=len(columns), pad_value=1.0)
print(args.output)
