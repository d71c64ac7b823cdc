"""A report on a model: bits per dimension of held-out images, and distances of generated ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor
from torch.utils.data import Dataset

from ..models.image import ImageAutoregressive
from ..models.latents import Latents
from ..utils.distributed import map_over_processes
from ..utils.modes import in_precision
from ..utils.rng import generator_for
from ..utils.validation import check_positive_int
from .drawing import dataset_batch, draw_batch, map_over_batches
from .metrics import FeatureNetwork, all_distances, check_distances, features_of
from .sliced_wasserstein import patches_per_image, pyramid_patches


def bits_per_dim(
    model: ImageAutoregressive,
    dataset: Dataset,
    *,
    batch_size: int = 64,
    seed: int = 0,
    progress: bool = False,
    **solver_kwargs,
) -> Tensor:
    """The bits per dimension of each image of a dataset, (n,), as of the model's `bits_per_dim`.

    The same seed and batch size give the same noise, whatever the model. The processes of a
    distributed run share the batches.

    Args:
        dataset: of images (c h w) with values in [0, 1], or of pairs of an image and its label.
        solver_kwargs: as of the head's `log_prob`.
    """
    options = dict(batch_size=batch_size, seed=seed, progress=progress)
    return _likelihood(model, dataset, model.bits_per_dim, **options, **solver_kwargs)


def nats_per_dim(model: ImageAutoregressive, dataset: Dataset, **options: Any) -> Tensor:
    """The nats per dimension of the latents of each image, (n,), as of `nats_per_dim` of a model
    with an autoencoder; latents are drawn from the posteriors of the images.

    Arguments as of `bits_per_dim`.
    """

    def nats(images: Tensor, generator: Generator, **given: Any) -> Tensor:
        latents = model.tokenizer.latents_of(images, generator)
        return model.nats_per_dim(latents, generator=generator, **given)

    return _likelihood(model, dataset, nats, **options)


def _likelihood(
    model: ImageAutoregressive,
    dataset: Dataset,
    function: Callable[..., Tensor],
    batch_size: int,
    seed: int,
    progress: bool,
    **solver_kwargs,
) -> Tensor:
    """`function(images, generator=…)` of each batch, joined."""
    device = next(model.parameters()).device

    def measure(start: int, images: Tensor, labels: Tensor | None) -> Tensor:
        options = {} if labels is None else dict(labels=labels.to(device))
        options |= dict(generator=generator_for(seed, start, device=device))
        return function(images.to(device), **options, **solver_kwargs).cpu()

    name = "likelihood" if progress else None
    return torch.cat(map_over_batches(measure, dataset, batch_size, name))


def mean_and_standard_error(values: Tensor) -> tuple[float, float]:
    """The mean of two or more independent values, and the std of such means."""
    return values.mean().item(), values.std().item() / math.sqrt(len(values))


def surprise(
    model: ImageAutoregressive,
    image: Tensor,
    label: int | None = None,
    seed: int = 0,
    **solver_kwargs,
) -> Tensor:
    """The negative log-likelihood in nats of each patch of an image (c h w): (rows columns).

    Args:
        solver_kwargs: as of the head's `log_prob`; the divergence is exact by default.
    """
    device = next(model.parameters()).device
    options = {} if label is None else dict(labels=torch.tensor([label], device=device))
    options |= dict(generator=torch.Generator(device).manual_seed(seed))
    solver_kwargs = dict(divergence="exact") | solver_kwargs
    log_probs = model.log_prob(image.unsqueeze(0).to(device), **options, **solver_kwargs)
    return -log_probs.view(model.tokenizer.grid).cpu()


def evaluate(
    model: ImageAutoregressive,
    dataset: Dataset,
    *,
    features: FeatureNetwork | None = None,
    count: int | None = None,
    evaluations: Sequence[int] = (),
    batch_size: int = 64,
    seed: int = 0,
    progress: bool = False,
    sample_kwargs: dict | None = None,
    solver_kwargs: dict | None = None,
) -> dict[str, Any]:
    """A report on a model, of plain numbers.

    The processes of a distributed run share the work, and all get the report.

    Args:
        dataset: of images (c h w) with values in [0, 1], or of pairs of an image and its label, not
            among those trained on.
        features: the network in whose features distances are, on the model's device and in
            evaluation mode. Without one there is the sliced Wasserstein distance alone.
        count: images to generate, by default as many as the dataset has; with labels, each as often
            as there. 0 for none.
        evaluations: numbers of function evaluations per token (NFE) at which to measure all of it
            again: bits per dimension by the steps of "rk4" that fit in (from 4 on), the distances
            by those of the sampler's solver. With few of them bits per dimension show the error of
            the solver, which may look like a better model.
        sample_kwargs: as of `ImageAutoregressive.sample`.
        solver_kwargs: as of the head's `log_prob`.

    Returns:
        `images`, how many the dataset has; `bits_per_dim`, if the head has a density (of a model
        with an autoencoder `nats_per_dim`, of latents): the mean, its
        standard error (without the solver's own error; with that of an estimate over orders), of
        which `density` they are, and how they were computed; `generated`,
        the distances and of what; and `curve`, both for each of `evaluations`.
    """
    sample_kwargs, solver_kwargs = sample_kwargs or {}, solver_kwargs or {}
    count = len(dataset) if count is None else count
    budgets = {f"evaluations[{i}]": most for i, most in enumerate(evaluations)}
    check_positive_int(batch_size=batch_size, **budgets)
    if len(dataset) < 2:
        raise ValueError(f"dataset must hold at least 2 images, got {len(dataset)}")
    head, device = model.head, next(model.parameters()).device
    measure = "nats_per_dim" if isinstance(model.tokenizer, Latents) else "bits_per_dim"
    # what is wrong with the arguments is found before the work
    head.density_settings(**solver_kwargs)
    if evaluations and "num_steps" not in head.sampling_options():
        raise ValueError(f"evaluations must be none for {type(head).__name__}: it has no num_steps")
    if count != 0:
        check_distances("dataset", len(dataset), features)
        check_distances("count", count, features)
        _, some_labels = dataset_batch(dataset, range(1))
        model.stream(labels=some_labels, **sample_kwargs)

    def seen(start: int, images: Tensor, labels: Tensor | None, of: int) -> tuple:
        """What the distances are of: patches; features and logits of a network; and labels."""
        patches = pyramid_patches(images.cpu(), patches_per_image(of), generator_for(seed, start))
        network = (None, None)
        if features is not None:
            network = features_of(features, images, device=device)
        return patches, *network, labels

    def joined(parts: list[tuple]) -> tuple:
        patches, *others = zip(*parts, strict=True)
        levels = [torch.cat(level) for level in zip(*patches, strict=True)]
        return levels, *(None if part[0] is None else torch.cat(part) for part in others)

    if count != 0:
        see_real = partial(seen, of=len(dataset))
        name = "real images" if progress else None
        parts = map_over_batches(see_real, dataset, batch_size, name)
        real, real_features, _, labels = joined(parts)
        if labels is not None:
            labels = labels[torch.arange(count) * len(dataset) // count]

    def likelihood(**kwargs) -> dict[str, Any]:
        options = dict(batch_size=batch_size, seed=seed, progress=progress)
        function = dict(bits_per_dim=bits_per_dim, nats_per_dim=nats_per_dim)[measure]
        mean, error = mean_and_standard_error(function(model, dataset, **options, **kwargs))
        if not math.isfinite(mean):
            raise FloatingPointError(
                f"{measure[:4]} per dimension are {mean}: more steps of the solver, or smaller "
                "tolerances, may do"
            )
        density = dict(density=model.model.density)
        return dict(mean=mean, standard_error=error, **density, **head.density_settings(**kwargs))

    def generated(**kwargs) -> dict[str, Any]:
        drawing = in_precision(model, kwargs.get("precision") or "no")

        def see_batch(start: int) -> tuple:
            indices = range(start, min(start + batch_size, count))
            images = draw_batch(drawing, indices, seed=seed, labels=labels, **kwargs)
            # 8-bit values, as the real ones have
            return seen(start, (images * 255).round() / 255, None, of=count)

        name = "generated images" if progress else None
        batches = map_over_processes(see_batch, range(0, count, batch_size), name)
        patches, found, logits, _ = joined(batches)
        measured = all_distances((real, real_features), (patches, found), logits, seed)
        return dict(count=count, evaluations=num_evaluations(**kwargs), **measured)

    def num_evaluations(**kwargs) -> int:
        return head.num_evaluations(**model.generation.with_given(kwargs, head))

    report = dict(images=len(dataset))
    if head.has_density():
        report[measure] = likelihood(**solver_kwargs)
    if count != 0:
        report["generated"] = generated(**sample_kwargs)
    for most in evaluations:
        point = dict(evaluations=most)
        if head.has_density() and most >= 4:
            rk4 = dict(solver="rk4", num_steps=most // 4)
            point[measure] = likelihood(**solver_kwargs | rk4)
        if count != 0:
            budgets = [sample_kwargs | dict(num_steps=steps) for steps in range(1, most + 1)]
            fitting = [kwargs for kwargs in budgets if num_evaluations(**kwargs) <= most]
            if fitting:
                point["generated"] = generated(**fitting[-1])
        if len(point) > 1:
            report.setdefault("curve", []).append(point)
    return report
