"""The orders at equal training time: digits by raster, random and masked order, and their speed.

    python benchmarks/orders.py
    python benchmarks/orders.py --minutes 2 --no-speed

`ardiff train digits` trains each order for the same minutes, without a tenth of the digits, by
which the checkpoint is chosen. Then:

- distance: the Fréchet distance of samples to the digits that were trained on, of pixels in [0, 1],
  by the number of iterations in which the 16 tokens are drawn; the floor is that of two halves of
  the real ones.
- filled: the lower halves of the held-out digits are given, and the upper ones filled. The share in
  which a logistic regression, fitted on the digits that were trained on, sees the digit that it
  was. Beside it that share for the real upper halves, and that of a regression fitted on the lower
  halves alone, which is as much as these tell.
- bits: per dimension of the held-out digits.

The second table is the time to draw images with random weights, of a model as wide as `ardiff train
FOLDER` makes them, in 16 and 64 tokens.

Flowers, CIFAR-10 with labels, and other images: the sets "orders" and "orders-labels" of
`quality.py`.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from digits import frechet
from sklearn.linear_model import LogisticRegression

from autoregressive_diffusion_pytorch import ImageAutoregressive
from autoregressive_diffusion_pytorch.cli.run import load_model, split
from autoregressive_diffusion_pytorch.cli.train import SIZES
from autoregressive_diffusion_pytorch.data.digits import digits
from autoregressive_diffusion_pytorch.models.presets import image_model_class
from autoregressive_diffusion_pytorch.utils.manifests import (
    best_checkpoint,
    newest_checkpoint,
    step_of,
)

ORDERS = ("raster", "random", "masked")
HELD_OUT = 0.1
COMPLETIONS = 4
TRIAL = 0.5  # minutes
FLOW = dict(head="flow")


def train(order: str, minutes: float, folder: Path) -> Path:
    """The run of an order, trained if there is none: as many steps as fit into the minutes, with a
    falling learning rate."""
    run = folder / order
    if not (run / "checkpoints").exists():
        with tempfile.TemporaryDirectory() as trial:
            call_train(order, Path(trial) / order, "--minutes", f"{TRIAL}", "--steps", f"{10**6}")
            fitting = step_of(newest_checkpoint(Path(trial) / order / "checkpoints"))
        steps = max(round(fitting * minutes / TRIAL), 1)
        call_train(order, run, "--steps", f"{steps}", "--lr-schedule", "cosine")
    return run


def call_train(order: str, run: Path, *options: str) -> None:
    command = [str(Path(sys.executable).with_name("ardiff")), "train", "digits", "--order", order]
    command += ["--hold-out", f"{HELD_OUT}", "--run", str(run), *options]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def load(run: Path) -> tuple[ImageAutoregressive, int]:
    """The model of a run, of the lowest validation loss as commands take it, and its steps."""
    checkpoint = best_checkpoint(run / "checkpoints")
    model, _ = load_model(json.loads((run / "config.json").read_text()), checkpoint)
    return model.eval(), step_of(checkpoint)


def held_out_digits(count: int) -> tuple[list[int], list[int]]:
    """Which digits a run trains on, and which it holds out."""
    kept, held_out = split(range(count), dict(source="digits", hold_out=HELD_OUT))
    return list(kept), list(held_out)


def filled_right(model, images: torch.Tensor, labels: np.ndarray, classifier) -> float:
    """How often an upper half that is drawn makes a digit what it was."""
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[:4] = True
    generator = torch.Generator().manual_seed(0)
    drawn = model.fill(images, mask, num_completions=COMPLETIONS, generator=generator)
    seen = classifier.predict(drawn.flatten(1).numpy())
    return (seen == labels.repeat(COMPLETIONS)).mean()


def compare_digits(args: argparse.Namespace, folder: Path) -> None:
    images, labels = digits()
    flat, labels = images.flatten(1).numpy(), labels.numpy()
    kept, held_out = held_out_digits(len(images))
    classifier = LogisticRegression(max_iter=5000).fit(flat[kept], labels[kept])
    lower = LogisticRegression(max_iter=5000).fit(flat[kept, 32:], labels[kept])
    order = np.random.default_rng(0).permutation(len(flat))
    real = dict(
        distance=frechet(flat[order[::2]].astype(float), flat[order[1::2]].astype(float)),
        filled=classifier.score(flat[held_out], labels[held_out]),
    )
    alone = dict(filled=lower.score(flat[held_out, 32:], labels[held_out]))
    print(f"{'':28}{'steps':>8}{'iterations':>12}{'distance':>10}{'filled':>8}{'bits':>8}")

    def row(name: str, *cells: str, **values: float) -> None:
        numbers = (values.get(key) for key in ("distance", "filled", "bits"))
        numbers = ("-" if value is None else f"{value:.3f}" for value in numbers)
        widths = (8, 12, 10, 8, 8)
        cells = (*cells, *[""] * (2 - len(cells)), *numbers)
        print(f"{name:28}" + "".join(f"{c:>{w}}" for c, w in zip(cells, widths, strict=True)))
        sys.stdout.flush()

    row("real ones", **real)
    row("by the lower half alone", **alone)
    for name in args.orders:
        model, step = load(train(name, args.minutes, folder))
        values = {}
        if model.model.draws_any_order:
            values["filled"] = filled_right(model, images[held_out], labels[held_out], classifier)
        torch.manual_seed(0)
        values["bits"] = model.bits_per_dim(images[held_out]).mean().item()
        for iterations in (16, 8, 4) if model.model.draws_any_order else (None,):
            generator = torch.Generator().manual_seed(0)
            options = dict(generator=generator, num_iterations=iterations)
            drawn = model.sample(args.count, **options).mul(255).round() / 255
            values["distance"] = frechet(drawn.flatten(1).double().numpy(), flat.astype(float))
            row(name, f"{step}", f"{iterations or 16}", **values)
            values = {}


def compare_speed(repeats: int) -> None:
    torch.manual_seed(0)
    sizes = {k: v for k, v in SIZES["small"].items() if k != "learning_rate"}
    print(f"\n{'seconds for images':28}{'tokens':>8}{'iterations':>12}", end="")
    print(f"{'1 image':>10}{'16':>8}{'raster / this':>18}")
    for image_size in (32, 64):
        models = {}
        for name, own in dict(raster={}, random=dict(order="random"), masked=FLOW).items():
            shape = dict(image_size=image_size, patch_size=8)
            models[name] = image_model_class("flow", name)(**shape, model=sizes | own).eval()
        tokens = (image_size // 8) ** 2
        cases = [("raster", None), ("random", tokens), ("random", 8)]
        cases += [("masked", n) for n in (tokens, tokens // 4, 8, 4)]
        cases = list(dict.fromkeys(cases))
        seconds = {(case, count): [] for case in cases for count in (1, 16)}
        for _ in range(repeats):  # in turn
            for (name, iterations), count in seconds:
                started = time.perf_counter()
                models[name].sample(count, num_iterations=iterations)
                seconds[(name, iterations), count].append(time.perf_counter() - started)
        medians = {key: statistics.median(values) for key, values in seconds.items()}
        for case in cases:
            one, many = (medians[case, count] for count in (1, 16))
            ratios = [medians[cases[0], count] / medians[case, count] for count in (1, 16)]
            print(
                f"{case[0]:28}{tokens:8}{case[1] or tokens:12}{one:10.3f}{many:8.3f}"
                f"{ratios[0]:10.2f}{ratios[1]:8.2f}",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--orders", nargs="+", choices=ORDERS, default=ORDERS)
    parser.add_argument("--minutes", type=float, default=5.0, help="of training, for each order")
    parser.add_argument("--count", type=int, default=2000, help="samples for each distance")
    parser.add_argument("--folder", type=Path, help="of the runs: those in it are not trained anew")
    parser.add_argument("--repeats", type=int, default=5, help="of each time")
    parser.add_argument("--no-digits", action="store_true", help="leave out the digits")
    parser.add_argument("--no-speed", action="store_true", help="leave out the times")
    args = parser.parse_args()
    if not args.no_digits:
        with tempfile.TemporaryDirectory() as folder:
            compare_digits(args, args.folder or Path(folder))
    if not args.no_speed:
        compare_speed(args.repeats)


if __name__ == "__main__":
    main()
