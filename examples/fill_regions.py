"""Train a masked model on the digits, or take a trained one, and fill regions of images.

    python examples/fill_regions.py --steps 4000 --output filled.png
    python examples/fill_regions.py --model runs/masked --images ~/photos --output filled.png

The first takes about 6 minutes on 2 CPU cores. The second takes the folder of an exported model, or
of a run of `ardiff train --order masked`. Writes two pictures. `filled.png`: in each row an image,
the region that is drawn anew in grey, four fillings, and the image on a canvas that is twice as
wide, whose other half is drawn. `filled.iterations.png`: samples after each iteration. The digits
need scikit-learn.
"""

import argparse
from pathlib import Path

import torch
from torchvision.utils import save_image

from autoregressive_diffusion_pytorch import ImageDataset, ImageMaskedAutoregressive

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("--steps", type=int, default=4000, help="training steps, of digits")
parser.add_argument("--model", help="folder of a trained model, or of a run")
parser.add_argument("--images", help="folder of images to fill, for a trained model")
parser.add_argument("--count", type=int, default=6, help="images to fill")
parser.add_argument("--scale", type=int, default=4, help="enlarge the pictures")
parser.add_argument("--guidance", type=float, default=1.0, help="scale of context guidance")
parser.add_argument("--output", type=Path, default=Path("filled.png"), help="file of the picture")
args = parser.parse_args()

torch.manual_seed(0)
if args.model:
    model = ImageMaskedAutoregressive.from_pretrained(args.model).eval()
    dataset = ImageDataset(args.images, model.image_size, channels=model.channels)
    places = torch.randperm(len(dataset))[: args.count].tolist()
    images = torch.stack([dataset[i] for i in places])
else:
    from sklearn.datasets import load_digits

    digits = torch.from_numpy(load_digits().images).float().unsqueeze(1) / 16
    sizes = dict(dim=128, depth=4, heads=4, head="flow", head_kwargs=dict(num_noise_draws=4))
    model = ImageMaskedAutoregressive(model=sizes, image_size=8, patch_size=2, channels=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.steps)
    for step in range(1, args.steps + 1):
        loss = model(digits[torch.randint(len(digits), (32,))])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        rates.step()
        if step % 100 == 0 or step == args.steps:
            print(f"step {step}: loss {loss.item():.3f}")
    images = digits[: args.count]


def save(pictures: list[torch.Tensor], columns: int, file: Path) -> None:
    scaled = torch.stack(pictures).repeat_interleave(args.scale, 2).repeat_interleave(args.scale, 3)
    save_image(scaled, file, nrow=columns, pad_value=1.0)
    print(file)


options = dict(context_guidance=args.guidance)
height, width = model.image_size
upper = torch.zeros(height, width, dtype=torch.bool)
upper[: height // 2] = True
middle = torch.zeros(height, width, dtype=torch.bool)
middle[height // 4 : 3 * height // 4, width // 4 : 3 * width // 4] = True

rows = []
for i, image in enumerate(images):
    mask = (upper, middle)[i % 2]
    fillings = model.fill(image[None], mask, num_completions=4, **options)
    right = torch.zeros(height, 2 * width, dtype=torch.bool)
    right[:, width:] = True
    canvas = torch.cat((image, torch.zeros_like(image)), dim=2)
    (wide,) = model.fill(canvas[None], right, **options)
    rows += [image, image.masked_fill(mask, 0.5), *fillings, *wide.split(width, dim=2)]
save(rows, 8, args.output)

frames = list(model.stream(batch_size=args.count, **options))
frames = torch.stack(frames, dim=1)  # (count, iterations, c, h, w)
save(list(frames.flatten(0, 1)), frames.shape[1], args.output.with_suffix(".iterations.png"))
