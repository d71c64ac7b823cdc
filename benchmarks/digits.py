"""Are the digits that a run draws digits, of all kinds, and not copies?

    ardiff train digits --head diffusion --run runs/diffusion
    ardiff train digits --labels --run runs/labels
    python benchmarks/digits.py runs/diffusion runs/labels

Draws samples with each run and compares them with scikit-learn's 1,797 real digits:

- sure: the share of samples of which a logistic regression, fitted on half of the real digits, is at least 90 % sure. Beside it
  the same share of the other half, and how many of that half it gets right.
- classes: how many samples it takes for each digit.
- right, of a run with labels: the share of samples in which it sees the digit that was asked for, at several scales of guidance.
- nearest: the median distance from a sample to the nearest real digit, and from a real digit to the nearest other one. Copies would
  lie nearer.
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
    """Samples (n 64) with values in [0, 16], as the real digits have. Options are those of `ardiff sample`; None leaves one out."""
    with tempfile.TemporaryDirectory() as folder:
        command = [Path(sys.executable).with_name("ardiff"), "sample", run, "--count", str(count), "--batch-size", "500"]
        command += ["--seed", str(seed), "--files", folder, "--output", f"{folder}/grid/grid.png"]
        for name, value in options.items():
            command += [] if value is None else [f"--{name.replace('_', '-')}", str(value)]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            raise SystemExit(result.stderr)
        files = sorted(Path(folder).glob("*.png"))
        return np.stack([np.asarray(Image.open(file)).ravel() / 255 * 16 for file in files])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--guidance", nargs="+", type=float, default=[1.0, 1.25, 1.5, 2.0, 3.0, 4.0], help="scales, for runs with labels"
    )
    parser.add_argument("--context-guidance", nargs="+", type=float, default=[None], help="scales; by default the run's own")
    parser.add_argument("--steps", nargs="+", type=int, default=[None], help="of the solver; by default the run's own")
    args = parser.parse_args()

    real, labels = load_digits(return_X_y=True)
    fitted, held_out, fitted_labels, held_out_labels = train_test_split(real, labels, test_size=0.5, random_state=0)
    classifier = LogisticRegression(max_iter=5000).fit(fitted, fitted_labels)

    def sure(digits: np.ndarray) -> float:
        return (classifier.predict_proba(digits).max(axis=1) >= 0.9).mean()

    neighbours = NearestNeighbors(n_neighbors=2).fit(real)
    between_real = np.median(neighbours.kneighbors(real)[0][:, 1])
    print(f"held-out real digits: {classifier.score(held_out, held_out_labels):.1%} right, {sure(held_out):.1%} sure")
    print(f"nearest other real digit: {between_real:.2f}\n")
    print(f"{'run':24} {'guidance':>8} {'context':>8} {'steps':>5} {'right':>6} {'sure':>6} {'nearest':>8}  classes 0 to 9")
    for run in args.runs:
        labelled = json.loads((Path(run) / "config.json").read_text()).get("classes") is not None
        scales = args.guidance if labelled else [1.0]
        for guidance, context_guidance, steps in product(scales, args.context_guidance, args.steps):
            options = dict(guidance=guidance, context_guidance=context_guidance, steps=steps)
            samples = draw(run, args.count, args.seed, **options)
            seen = classifier.predict(samples)
            # as many of each digit, in their order
            right = f"{(seen == np.arange(len(seen)) * 10 // len(seen)).mean():.1%}" if labelled else ""
            nearest = np.median(neighbours.kneighbors(samples)[0][:, 0])
            counts = " ".join(f"{count:3}" for count in np.bincount(seen, minlength=10))
            context, steps = ("" if value is None else value for value in (context_guidance, steps))
            print(
                f"{run:24} {guidance:8} {context:8} {steps:5} {right:>6} {sure(samples):6.1%} {nearest:8.2f}  {counts}", flush=True
            )


if __name__ == "__main__":
    sys.exit(main())
