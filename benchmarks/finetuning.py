"""Is fine-tuning faster than training anew, and does a model keep what it knows?

    python benchmarks/finetuning.py

Trainings of a small model on scikit-learn's digits, all with the defaults of `ardiff train` but for
the size, and several seeds; what is started from was trained twice as long as a training anew.

- upside-down: a model of the digits learns the digits turned by 180°. Prints the validation loss,
  on a tenth of the digits, and how many steps fine-tuning needs for that of training anew.
- new-class: a model of the digits 0 to 8 with labels learns the 9 too, in a third of the steps,
  from all ten digits, or from as many nines as other digits. Prints the sliced Wasserstein distance
  (times 1,000) and the Fréchet distance of pixels to the real digits, and the share of samples in
  which a logistic regression sees the digit that was asked for.

All are means over the seeds and their standard errors.
"""

import argparse
import copy
import statistics
import sys
import tempfile
from pathlib import Path

import torch
from digits import frechet
from sklearn.linear_model import LogisticRegression
from torch.utils.data import ConcatDataset, TensorDataset

from autoregressive_diffusion_pytorch import ImageAutoregressiveFlow, ImageTrainer
from autoregressive_diffusion_pytorch.data.digits import digits
from autoregressive_diffusion_pytorch.evaluation.sliced_wasserstein import (
    pyramid_patches,
    sliced_wasserstein,
)
from autoregressive_diffusion_pytorch.models.finetuning import finetuned
from autoregressive_diffusion_pytorch.training.loop import Part

SIZES = dict(dim=64, depth=3, heads=4, dim_head=16, flow_kwargs=dict(num_noise_draws=2))


class Curve(Part):
    """The validation loss every some steps."""

    def __init__(self, every: int):
        self.every = every
        self.losses = {}

    def after_step(self, trainer, step) -> None:
        if trainer.step % self.every == 0:
            self.losses[trainer.step] = trainer.validate()


def new_model(seed: int, num_classes: int | None = None) -> ImageAutoregressiveFlow:
    torch.manual_seed(seed)
    sizes = dict(image_size=8, patch_size=2, channels=1, num_classes=num_classes)
    return ImageAutoregressiveFlow(model=SIZES, **sizes)


def train(model, dataset, steps, seed, learning_rate, validation=None, every=50, **options):
    """The averaged model, and its validation loss by step."""
    curve = Curve(every)
    with tempfile.TemporaryDirectory() as folder:
        trainer = ImageTrainer(
            copy.deepcopy(model),
            dataset=dataset,
            validation_dataset=validation,
            num_train_steps=steps,
            learning_rate=learning_rate,
            batch_size=32,
            seed=seed,
            save_results_every=steps,
            num_samples=1,
            checkpoint_every=steps,
            checkpoints_folder=Path(folder) / "checkpoints",
            results_folder=Path(folder) / "samples",
            log_with=None,
            parts=[] if validation is None else [curve],
            **options,
        )
        trainer()
    return trainer.ema.ema_model.eval(), curve.losses


def told(values: list[float], digits: int = 4) -> str:
    mean = statistics.mean(values)
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return f"{mean:.{digits}f} ± {error:.{digits}f}"


def upside_down(args) -> None:
    images, _ = digits()
    held_out = torch.arange(len(images)) % 10 == 0
    turned = images.flip(2, 3)
    sets = dict(dataset=turned[~held_out], validation=turned[held_out], every=args.steps // 48)
    anew, tuned = [], {rate: [] for rate in args.learning_rates}
    for seed in range(args.seeds):
        common = dict(seed=seed, learning_rate=args.anew)
        base, _ = train(new_model(seed), images[~held_out], 2 * args.steps, **common)
        anew.append(train(new_model(100 + seed), steps=args.steps, **sets, **common)[1])
        for rate, losses in tuned.items():
            common = dict(seed=seed, steps=args.steps // 3, learning_rate=rate)
            losses.append(train(finetuned(base), **sets, **common)[1])
    print("loss, and of fine-tuning the steps to that of training anew, on average over the seeds")
    print(f"{'steps':>8}{'anew':>20}" + "".join(f"{f'from, {rate:g}':>30}" for rate in tuned))
    for step in list(anew[0])[1::4]:
        line = f"{step:8}{told([losses[step] for losses in anew]):>20}"
        for runs in tuned.values():
            needed = [
                next((at for at in run if run[at] <= losses[step]), None)
                for run, losses in zip(runs, anew, strict=True)
            ]
            after = "more" if None in needed else f"{statistics.mean(needed):.0f}"
            loss = told([run[step] for run in runs]) if step in runs[0] else ""
            line += f"{loss:>20}{after:>10}"
        print(line)


def new_class(args) -> None:
    images, labels = digits()
    classifier = LogisticRegression(max_iter=5000).fit(images.flatten(1), labels)
    old, new = labels < 9, labels == 9
    old_digits = TensorDataset(images[old], labels[old])
    nines = TensorDataset(images[new], labels[new])
    datasets = {
        "all digits": TensorDataset(images, labels),
        "half nines": ConcatDataset([old_digits, *[nines] * 9]),
    }

    def measure(name: str, model: ImageAutoregressiveFlow, *classes: int) -> None:
        asked = torch.tensor(classes).repeat_interleave(args.count // len(classes))
        parts = [
            model.sample(labels=part, generator=torch.Generator().manual_seed(i))
            for i, part in enumerate(asked.split(500))
        ]
        samples, real = torch.cat(parts), images[torch.isin(labels, torch.tensor(classes))]
        right = (torch.from_numpy(classifier.predict(samples.flatten(1))) == asked).float().mean()
        patches = [
            pyramid_patches(part, 4, torch.Generator().manual_seed(0)) for part in (real, samples)
        ]
        distance = frechet(samples.flatten(1).numpy(), real.flatten(1).numpy())
        found = [sliced_wasserstein(*patches)[0], distance, right.item()]
        rows.setdefault(name, []).append(found)

    rows = {}
    for seed in range(args.seeds):
        common = dict(seed=seed, learning_rate=args.anew)
        base, _ = train(new_model(seed, 9), old_digits, 2 * args.steps, **common)
        measure("before, 0 to 8", base, *range(9))
        anew, _ = train(new_model(100 + seed, 10), datasets["all digits"], args.steps, **common)
        measure("anew, 0 to 8", anew, *range(9))
        measure("anew, 9", anew, 9)
        for name, dataset in datasets.items():
            common = dict(seed=seed, steps=args.steps // 3, learning_rate=args.learning_rates[0])
            model, _ = train(finetuned(base, num_classes=10), dataset, **common)
            measure(f"{name}, 0 to 8", model, *range(9))
            measure(f"{name}, 9", model, 9)
    print(f"{'':24}{'sliced Wasserstein':>20}{'Fréchet':>20}{'right':>20}")
    for name, values in rows.items():
        columns = [told(list(column), 3) for column in zip(*values, strict=True)]
        print(f"{name:24}" + "".join(f"{text:>20}" for text in columns))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = {"upside-down": upside_down, "new-class": new_class}
    parser.add_argument("--parts", nargs="+", choices=parts, default=list(parts))
    parser.add_argument("--steps", type=int, default=900, help="of a training anew")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--count", type=int, default=4500, help="samples to measure")
    parser.add_argument("--anew", type=float, default=2e-3, help="learning rate of a training anew")
    parser.add_argument("--learning-rates", type=float, nargs="+", default=[2e-3])
    args = parser.parse_args()
    for part in args.parts:
        print(f"\n{part}", flush=True)
        parts[part](args)


if __name__ == "__main__":
    sys.exit(main())
