"""Are the digits that a run draws what it learned: digits, of all kinds, as real ones are spread,
and not copies?

    ardiff train digits --run runs/digits
    ardiff train digits --labels --run runs/labels
    python benchmarks/digits.py runs/digits runs/labels

Draws samples with each run and compares them with scikit-learn's 1,797 real digits:

- distance: the Fréchet distance to the real ones of pixels in [0, 1]; the floor is that of two
  halves of the real ones.
- classes: the total variation between the shares of the digits that a logistic regression, fitted
  on half of the real ones, takes the samples for, and those that it takes the real ones for.
- contrast: the standard deviation of all pixels, in units of that of the real ones.
- sure: the share of samples of which that regression is at least 90 % sure.
- right, of a run with labels: the share of samples in which it sees the digit that was asked for,
  at several scales of guidance.
- nearest: the median distance from a sample to the nearest real digit, and from a real digit to the
  nearest other one. Copies would lie nearer.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.neighbors import NearestNeighbors


def draw(run: str, count: int, seed: int, **options: float | None) -> np.ndarray:
    """Samples (n 64) with values in [0, 1]. Options are those of `ardiff sample`; None leaves one
    out."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            Path(sys.executable).with_name("ardiff"),
            "sample",
            run,
            "--count",
            str(count),
            "--batch-size",
            "500",
        ]
        command += ["--seed", str(seed), "--files", folder, "--output", f"{folder}/grid/grid.png"]
        for name, value in options.items():
            command += [] if value is None else [f"--{name.replace('_', '-')}", str(value)]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            raise SystemExit(result.stderr)
        files = sorted(Path(folder).glob("*.png"))
        return np.stack([np.asarray(Image.open(file)).ravel() / 255 for file in files])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--guidance",
        nargs="+",
        type=float,
        default=[1.0, 1.25, 1.5, 2.0, 3.0, 4.0],
        help="scales, for runs with labels",
    )
    parser.add_argument(
        "--context-guidance",
        nargs="+",
        type=float,
        default=[None],
        help="scales; by default the run's own",
    )
    parser.add_argument(
        "--checkpoint", type=int, help="step of the checkpoint to draw from; by default the newest"
    )
    parser.add_argument(
        "--steps",
        nargs="+",
        type=int,
        default=[None],
        help="of the solver; by default the run's own",
    )
    args = parser.parse_args()

    real, labels = load_digits(return_X_y=True)
    real /= 16
    fitted, held_out, fitted_labels, _ = train_test_split(
        real, labels, test_size=0.5, random_state=0
    )
    classifier = LogisticRegression(max_iter=5000).fit(fitted, fitted_labels)
    neighbours = NearestNeighbors(n_neighbors=2).fit(real)

    def sure(digits: np.ndarray) -> float:
        return (classifier.predict_proba(digits).max(axis=1) >= 0.9).mean()

    def shares(digits: np.ndarray) -> np.ndarray:
        return np.bincount(classifier.predict(digits), minlength=10) / len(digits)

    def row(name: str, *texts: str, digits: np.ndarray, others: np.ndarray, nearest: float) -> None:
        variation = np.abs(shares(digits) - shares(real)).sum() / 2
        cells = (
            frechet(digits, others),
            variation,
            digits.std() / others.std(),
            sure(digits),
            nearest,
        )
        print(
            f"{name:24}"
            + "".join(f"{text:>9}" for text in texts)
            + "".join(f"{cell:9.3f}" for cell in cells),
            flush=True,
        )

    head = (
        "",
        "guidance",
        "context",
        "steps",
        "right",
        "distance",
        "classes",
        "contrast",
        "sure",
        "nearest",
    )
    print(f"{head[0]:24}" + "".join(f"{name:>9}" for name in head[1:]))
    order = np.random.default_rng(0).permutation(len(real))
    between_real = np.median(neighbours.kneighbors(real)[0][:, 1])
    row(
        "two halves of real ones",
        *[""] * 4,
        digits=real[order[::2]],
        others=real[order[1::2]],
        nearest=between_real,
    )
    row("held-out real ones", *[""] * 4, digits=held_out, others=fitted, nearest=between_real)
    for run in args.runs:
        labelled = json.loads((Path(run) / "config.json").read_text()).get("classes") is not None
        scales = args.guidance if labelled else [None]
        for guidance, context_guidance, steps in product(scales, args.context_guidance, args.steps):
            options = dict(guidance=guidance, context_guidance=context_guidance, steps=steps)
            samples = draw(run, args.count, args.seed, checkpoint=args.checkpoint, **options)
            # as many of each digit, in their order
            asked = np.arange(len(samples)) * 10 // len(samples)
            right = f"{(classifier.predict(samples) == asked).mean():.3f}" if labelled else ""
            texts = ["" if value is None else f"{value:g}" for value in options.values()]
            nearest = np.median(neighbours.kneighbors(samples)[0][:, 0])
            row(run[-24:], *texts, right, digits=samples, others=real, nearest=nearest)


def frechet(images: np.ndarray, others: np.ndarray) -> float:
    """Between Gaussians of the same means and covariances (Dowson & Landau 1982)."""
    (mean, cov), (other_mean, other_cov) = ((x.mean(axis=0), np.cov(x.T)) for x in (images, others))
    values, vectors = np.linalg.eigh(cov)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ other_cov @ root).clip(min=0)).sum()
    return ((mean - other_mean) ** 2).sum() + np.trace(cov) + np.trace(other_cov) - 2 * cross


if __name__ == "__main__":
    sys.exit(main())
