"""Spoken vowels that a model draws, against real ones that it has not seen.

    python benchmarks/speech.py --run runs/speech

Needs a run of `ardiff train speech --labels`, and the extra [demo]. Draws utterances with the
speakers of the 370 real ones of the test part, and prints a table: the share of statistics
(quantiles and lag correlations of each coefficient) that lie within the bootstrap interval of the
real ones, the Kolmogorov-Smirnov distance of the lengths, how often a classifier of speakers that
knows real utterances hears the wanted one, how often a network tells drawn and real ones apart, and
the log-density of the real ones beside that of the best Gaussian autoregressive process. The row
"training" is of utterances of the training part instead of drawn ones: what a model is that has
learned its data by heart.
"""

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from sklearn.model_selection import StratifiedKFold
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from autoregressive_diffusion_pytorch.cli.run import checkpoint_of, model_class, read_config
from autoregressive_diffusion_pytorch.data.sequence_statistics import (
    autocorrelations,
    lengths_distance,
    quantiles,
)
from autoregressive_diffusion_pytorch.data.speech import speech
from autoregressive_diffusion_pytorch.evaluation.drawing import draw_sequences
from autoregressive_diffusion_pytorch.evaluation.sequence_report import (
    log_probs,
    ratio_and_standard_error,
)

FRAMES = 10  # to which utterances are brought for the classifiers
REPEATS = 4  # drawn utterances for each real one
MAX_LAG = 5


def statistics(seqs: list) -> torch.Tensor:
    """Quantiles and lag correlations of each coefficient, in one vector."""
    lags = autocorrelations(seqs, MAX_LAG)[1:]
    return torch.cat((quantiles(seqs).flatten(), lags.flatten()))


def share_within(real: list, drawn: list, count: int = 1000) -> float:
    """The share of the statistics within the 95 % bootstrap interval of the real ones."""
    generator = torch.Generator().manual_seed(0)
    draws = torch.randint(len(real), (count, len(real)), generator=generator).tolist()
    resampled = torch.stack([statistics([real[i] for i in draw]) for draw in draws])
    low, high = resampled.quantile(torch.tensor([0.025, 0.975]).double(), dim=0)
    found = statistics(drawn)
    return ((found >= low) & (found <= high)).double().mean().item()


def features(seqs: list) -> np.ndarray:
    """Utterances of any length as vectors: frames at even places, steps between them, length."""
    rows = []
    for seq in seqs:
        at = torch.linspace(0, len(seq) - 1, FRAMES)
        low, share = at.floor().long(), (at % 1).unsqueeze(1)
        frames = torch.lerp(seq[low], seq[(low + 1).clamp(max=len(seq) - 1)], share)
        steps = seq.diff(dim=0)
        rough = torch.cat((steps.square().mean(dim=0), steps.diff(dim=0).square().mean(dim=0)))
        rows.append(torch.cat((frames.flatten(), rough.log(), torch.tensor([float(len(seq))]))))
    return torch.stack(rows).numpy()


def told_apart(real: list, drawn: list) -> float:
    """How often a small network tells real and drawn ones apart, over five folds."""
    drawn = drawn[: len(real)]
    x = np.concatenate((features(real), features(drawn)))
    y = np.repeat([0, 1], [len(real), len(drawn)])
    right = []
    for fit, test in StratifiedKFold(5, shuffle=True, random_state=0).split(x, y):
        network = MLPClassifier((64,), alpha=1.0, max_iter=500, random_state=0)
        network = make_pipeline(StandardScaler(), network).fit(x[fit], y[fit])
        right.append((network.predict(x[test]) == y[test]).mean())
    return float(np.mean(right))


def gaussian_process(fitted: tuple, scored: tuple, order: int) -> float:
    """Nats per frame of a Gaussian autoregressive process with a mean for each speaker.

    With a Gaussian of its own for each of the first frames, and the lengths of its speaker as they
    are distributed over all, smoothed.
    """
    total, frames = 0.0, 0
    for position in range(order + 1):

        def rows(seqs: list, labels: torch.Tensor, position: int = position) -> tuple:
            x, y = [], []
            for seq, label in zip(seqs, labels, strict=True):
                last = len(seq) if position == order else min(len(seq), position + 1)
                for i in range(position, last):
                    past = seq[i - position : i].flatten().double()
                    x.append(torch.cat((past, torch.eye(9).double()[label])))
                    y.append(seq[i].double())
            return torch.stack(x), torch.stack(y)

        x, y = rows(*fitted)
        identity = torch.eye(x.shape[1]).double()
        weights = torch.linalg.solve(x.T @ x + 1e-2 * identity, x.T @ y)
        rest = y - x @ weights
        covariance = rest.T @ rest / len(rest) + 1e-4 * torch.eye(y.shape[1]).double()
        x, y = rows(*scored)
        normal = torch.distributions.MultivariateNormal(x @ weights, covariance)
        total += normal.log_prob(y).sum().item()
        frames += len(y)
    counts = np.bincount([len(seq) for seq in fitted[0]], minlength=40) + 0.1
    shares = np.log(counts / counts.sum())
    return (total + sum(shares[len(seq)] for seq in scored[0])) / frames


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, required=True, help="folder of the run")
    parser.add_argument("--seed", type=int, default=0, help="of the drawn utterances")
    args = parser.parse_args()

    known, real = speech("train"), speech("test")
    config = read_config(args.run)
    model = model_class(config).from_pretrained(checkpoint_of(args.run, None)).eval()
    labels = real[1].repeat(REPEATS)
    options = dict(batch_size=len(labels), seed=args.seed)
    drawn = draw_sequences(model, len(labels), labels=labels, **options)
    generator = torch.Generator().manual_seed(args.seed)
    of_speaker = [(known[1] == label).nonzero().squeeze(1) for label in range(9)]
    picks = [of_speaker[label] for label in labels]
    picks = [pick[torch.randint(len(pick), (), generator=generator)] for pick in picks]
    by_heart = [known[0][pick] for pick in picks]

    svc = make_pipeline(StandardScaler(), SVC(C=10)).fit(features(known[0]), known[1])
    right = (svc.predict(features(real[0])) == real[1].numpy()).mean()
    allowed = 1.36 * math.sqrt(1 / len(real[0]) + 1 / len(drawn))
    print(f"classifier of speakers: {right:.3f} right on real utterances of the test part")
    print(f"lengths: distances up to {allowed:.3f} are chance, at 5 %\n")
    print("| utterances | statistics within | lengths | wanted speaker | told apart |")
    print("| --- | --- | --- | --- | --- |")
    for name, seqs in (("drawn", drawn), ("training", by_heart)):
        wanted = (svc.predict(features(seqs)) == labels.numpy()).mean()
        row = (share_within(real[0], seqs), lengths_distance(real[0], seqs), wanted)
        row = [*row, told_apart(real[0], seqs)]
        print(f"| {name} | " + " | ".join(f"{value:.3f}" for value in row) + " |", flush=True)

    pairs = list(zip(real[0], real[1].tolist(), strict=True))
    mean, error = ratio_and_standard_error(*log_probs(model, pairs, batch_size=128))
    print("\n| log-density of real utterances | nats per frame |")
    print("| --- | --- |")
    print(f"| the model | {mean:.3f} ± {error:.3f} |", flush=True)
    scores = [gaussian_process(known, real, order) for order in range(1, 6)]
    best = int(np.argmax(scores))
    print(f"| Gaussian process of order {best + 1}, the best of 1 to 5 | {scores[best]:.3f} |")


if __name__ == "__main__":
    main()
