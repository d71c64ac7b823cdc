"""Which generation settings draw a model's best images: draws with several, and compares them with real images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from autoregressive_diffusion_pytorch.checks import check_choice, check_positive_int
from autoregressive_diffusion_pytorch.evaluation import FeatureNetwork, all_distances, check_distances, dataset_batch, features_of
from autoregressive_diffusion_pytorch.generation import GenerationSettings
from autoregressive_diffusion_pytorch.image import ImageAutoregressive, draw_images
from autoregressive_diffusion_pytorch.processes import map_over_processes
from autoregressive_diffusion_pytorch.sliced_wasserstein import patches_per_image, pyramid_patches

# the values that are tried of each setting, the plainest first; of the first two only those that a model has learned something for
AXES = dict(
    context_guidance=(1.0, 1.1, 1.25, 1.5, 2.0, 2.5, 3.0),
    guidance_scale=(1.0, 1.25, 1.5, 2.0, 3.0),
    temperature=(1.0, 0.95, 1.05, 0.9),
    num_steps=(8, 16),
)
ROUNDS = 2  # over all settings: the best value of one depends on the others
FINALISTS, NEAR = 5, 0.1  # so many, at most so much further than the nearest, are drawn once more with other noise
MARGIN = 0.01  # by which settings must be nearer than plainer ones


@dataclass
class Tuning:
    """What `tune` found.

    Attributes:
        settings: the best ones.
        metric: the name of the distance that decided.
        rows: for each of the settings that were tried, its values by name, and its distances; the nearest first. Those of the
            finalists are means over two draws.
        chosen: the row of the best ones: of those within `MARGIN` of the nearest finalist the plainest.
        floor: the distances of one half of the real images to the other.
    """

    settings: GenerationSettings
    metric: str
    rows: list[dict]
    chosen: dict
    floor: dict[str, float]


def axes_of(model: ImageAutoregressive) -> dict[str, Sequence]:
    """The values to try of each setting, for a model."""
    sequences = model.model
    axes = dict(AXES)
    if sequences.context_drop_prob == 0:
        del axes["context_guidance"]
    if not sequences.conditioning.is_conditional or sequences.conditioning.cond_drop_prob == 0:
        del axes["guidance_scale"]
    return axes


def tune(
    model: ImageAutoregressive,
    dataset: Dataset,
    *,
    count: int | None = None,
    features: FeatureNetwork | None = None,
    axes: dict[str, Sequence] | None = None,
    batch_size: int = 64,
    seed: int = 0,
    progress: bool = False,
    **sample_kwargs,
) -> Tuning:
    """Looks for the generation settings whose images are nearest to those of a dataset, one setting after the other.

    The same noise is drawn with all settings, so that small differences show. Set `model.generation` to the result's `settings` to
    draw with them.

    Args:
        dataset: of images (c h w) with values in [0, 1], or of pairs of an image and its label; best not those trained on.
        count: images to draw with each of the settings; by default as many as the dataset has, from 500 to 2,000.
        features: the network in whose features the Fréchet distance decides, with precision and recall beside it. By default the
            sliced Wasserstein distance decides, which needs none: it sees contrast, detail and layout, but not what is shown.
        axes: the values to try by the name of the setting, instead of `AXES`.
        sample_kwargs: further arguments of `sample`, such as `precision`.
    """
    count = min(max(len(dataset), 500), 2000) if count is None else count
    check_positive_int(count=count, batch_size=batch_size)
    check_distances("half of the dataset", len(dataset) // 2, features)
    check_distances("count", count, features)
    axes = axes_of(model) if axes is None else axes
    for name in axes:
        check_choice("a setting in axes", name, AXES)
        if name in sample_kwargs:
            raise ValueError(f"{name} is looked for: it must not be among the arguments of sample, got {sample_kwargs[name]!r}")
    device = next(model.parameters()).device
    real, labels = dataset_batch(dataset, range(len(dataset)))
    model.check_images(real)
    if labels is not None:
        labels = labels[torch.arange(count) * len(labels) // count]
    model.stream(labels=None if labels is None else labels[:1], **sample_kwargs)  # what is wrong is found before the work

    def seen(images: Tensor) -> tuple[list[Tensor], Tensor | None]:
        images = (images * 255).round() / 255  # 8-bit values, as files have
        patches = pyramid_patches(images, patches_per_image(len(images)), torch.Generator().manual_seed(seed))
        return patches, None if features is None else features_of(features, images, device=device)[0]

    metric = "sliced_wasserstein" if features is None else "frechet_distance"
    of_real = seen(real)
    own_steps = model.model.head.steps_and_solver()[0]
    plain = tuple(own_steps if name == "num_steps" else getattr(GenerationSettings, name) for name in axes)
    rows: dict[tuple, dict[str, float]] = {}
    previous = model.generation
    bar = tqdm(total=1 + sum(len(values) - 1 for values in axes.values()), desc="settings", disable=not progress)

    def distances_of(key: tuple, noise_seed: int) -> dict[str, float]:
        model.generation = replace(previous, **dict(zip(axes, key, strict=True)))
        images = draw_images(model, count, batch_size=batch_size, seed=noise_seed, labels=labels, **sample_kwargs)
        # by one process for all: numbers of several devices may differ in the last place, and so what they decide
        (found,) = map_over_processes(lambda drawn: all_distances(of_real, seen(drawn), seed=seed), [images])
        bar.total = max(bar.total, bar.n + 1)
        bar.update()
        bar.set_postfix_str(f"{metric.replace('_', ' ')} {found[metric]:.4g}")
        return found

    def measure(key: tuple) -> float:
        if key not in rows:
            rows[key] = distances_of(key, seed)
        return rows[key][metric]

    try:
        best = plain
        measure(best)
        for _ in range(ROUNDS):
            for i, values in enumerate(axes.values()):
                best = min(((*best[:i], value, *best[i + 1 :]) for value in (best[i], *values)), key=measure)
        finalists = [key for key in sorted(rows, key=measure) if measure(key) <= measure(best) * (1 + NEAR)][:FINALISTS]
        if len(finalists) > 1:
            for key in finalists:
                again = distances_of(key, seed + 1)
                rows[key] = {name: (value + again[name]) / 2 for name, value in rows[key].items()}
    finally:
        model.generation = previous
        bar.close()

    def departure(key: tuple) -> int:
        """How far settings are from the plain ones, in values of all."""
        given = zip(axes.values(), key, plain, strict=True)
        return sum(0 if value == own else 1 + list(values).index(value) for values, value, own in given)

    lowest = min(map(measure, finalists))
    best = min((key for key in finalists if measure(key) <= lowest * (1 + MARGIN)), key=departure)
    settings = dict(zip(axes, best, strict=True))
    if settings.get("num_steps") == own_steps:
        settings["num_steps"] = None
    floor = all_distances(seen(real[::2]), seen(real[1::2]), seed=seed)
    table = {key: dict(zip(axes, key, strict=True)) | row for key, row in rows.items()}
    nearest_first = sorted(table.values(), key=lambda row: row[metric])
    return Tuning(replace(previous, **settings), metric, nearest_first, table[best], floor)
