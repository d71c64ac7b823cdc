"""A report on a model of sequences: nats per token of held-out ones, and statistics of samples."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..data.sequence_statistics import compare
from ..data.sequences import SequenceItems, pad_sequences
from ..models.sequence_model import SequenceModel
from ..utils.distributed import map_over_processes
from ..utils.rng import generator_for
from ..utils.validation import check_positive_int
from .drawing import draw_sequences


def log_probs(
    model: SequenceModel,
    dataset: Dataset,
    *,
    batch_size: int = 64,
    seed: int = 0,
    progress: bool = False,
    **solver_kwargs,
) -> tuple[Tensor, Tensor]:
    """The log-density in nats of each sequence of a dataset, (n,), and their lengths (n,).

    The same seed and batch size give the same noise, whatever the model. The processes of a
    distributed run share the batches.

    Args:
        dataset: as of `SequenceTrainer`.
        solver_kwargs: as of the head's `log_prob`.
    """
    check_positive_int(batch_size=batch_size)
    items, device = SequenceItems(dataset), next(model.parameters()).device

    def score(start: int) -> Tensor:
        indices = range(start, min(start + batch_size, len(items)))
        batch = pad_sequences([items[i] for i in indices])
        batch = {name: part.to(device) for name, part in batch.items()}
        generator = generator_for(seed, start, device=device)
        return model.log_prob(**batch, generator=generator, **solver_kwargs).sum(dim=1).cpu()

    name = "likelihood" if progress else None
    scores = map_over_processes(score, range(0, len(items), batch_size), name)
    return torch.cat(scores), torch.tensor(items.lengths())


def evaluate_sequences(
    model: SequenceModel,
    dataset: Dataset,
    *,
    count: int | None = None,
    batch_size: int = 64,
    seed: int = 0,
    progress: bool = False,
    sample_kwargs: dict | None = None,
    solver_kwargs: dict | None = None,
) -> dict[str, Any]:
    """A report on a model of sequences, of plain numbers.

    The processes of a distributed run share the work, and all get the report.

    Args:
        dataset: as of `SequenceTrainer`, not among those trained on.
        count: sequences to draw, by default as many as the dataset has; with labels, each as often
            as there. 0 for none.
        sample_kwargs: as of `SequenceModel.sample`.
        solver_kwargs: as of the head's `log_prob`.

    Returns:
        `sequences`, how many the dataset has; `nats_per_token`, if the model has a density: the
        mean log-density over all tokens, its standard error over sequences, of which `density` it
        is, and how it was computed; and `generated`, what `sequence_statistics.compare` gives.
    """
    sample_kwargs, solver_kwargs = sample_kwargs or {}, solver_kwargs or {}
    count = len(dataset) if count is None else count
    check_positive_int(batch_size=batch_size)
    if len(dataset) < 2:
        raise ValueError(f"dataset must hold at least 2 sequences, got {len(dataset)}")
    items = SequenceItems(dataset)
    model.head.density_settings(**solver_kwargs)  # what is wrong is found before the work
    report: dict[str, Any] = dict(sequences=len(items))
    options = dict(batch_size=batch_size, seed=seed, progress=progress)
    if model.has_density:
        scores, lens = log_probs(model, dataset, **options, **solver_kwargs)
        mean, error = ratio_and_standard_error(scores, lens)
        if not math.isfinite(mean):
            raise FloatingPointError(f"nats per token are {mean}: smaller tolerances may do")
        settings = model.head.density_settings(**solver_kwargs)
        report["nats_per_token"] = dict(
            mean=mean, standard_error=error, density=model.density, **settings
        )
    if count != 0:
        taken = [items[i * len(items) // count] for i in range(count)]
        labels = None
        if "labels" in taken[0]:
            labels = torch.stack([item["labels"] for item in taken])
        sampled = draw_sequences(model, count, labels=labels, **options, **sample_kwargs)
        report["generated"] = compare([item["seq"] for item in items], sampled)
    return report


def ratio_and_standard_error(values: Tensor, sizes: Tensor) -> tuple[float, float]:
    """The sum of values over that of sizes, and its standard error over independent pairs."""
    values, sizes = values.double(), sizes.double()
    ratio = values.sum() / sizes.sum()
    spread = (values - ratio * sizes).square().sum() / (len(values) - 1)
    return ratio.item(), (spread.sqrt() * math.sqrt(len(values)) / sizes.sum()).item()
