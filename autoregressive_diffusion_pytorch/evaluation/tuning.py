"""Search of the generation settings whose images are nearest to real ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from ..models.image import ImageAutoregressive
from ..models.settings import GenerationSettings
from ..utils.distributed import map_over_processes
from ..utils.validation import check_choice, check_positive_int
from .drawing import dataset_batch, draw_images
from .metrics import FeatureNetwork, all_distances, check_distances, features_of
from .sliced_wasserstein import patches_per_image, pyramid_patches

# values to try per setting, the plainest first
AXES = dict(
    context_guidance=(1.0, 1.1, 1.25, 1.5, 2.0, 2.5, 3.0),
    guidance_scale=(1.0, 1.25, 1.5, 2.0, 3.0),
    temperature=(1.0, 0.95, 1.05, 0.9),
    num_steps=(8, 16),  # or a head's own ones, twice and four times as many
)
ROUNDS = 2  # over all settings: the best value of one depends on the others
# so many, at most so much further than the nearest, are drawn once more with other noise
FINALISTS, NEAR = 5, 0.1
MARGIN = 0.01  # by which settings must be nearer than plainer ones


@dataclass
class Tuning:
    """What `tune` found.

    Attributes:
        settings: the best ones.
        metric: the name of the distance that decided.
        rows: for each of the settings that were tried, its values by name, and its distances; the
            nearest first. Those of the finalists are means over two draws.
        chosen: the row of the best ones: of those within `MARGIN` of the nearest finalist the
            plainest.
        floor: the distances of one half of the real images to the other.
    """

    settings: GenerationSettings
    metric: str
    rows: list[dict]
    chosen: dict
    floor: dict[str, float]


def axes_of(model: ImageAutoregressive) -> dict[str, Sequence]:
    """The values to try of each setting, for a model."""
    conditioning = model.model.conditioning
    can_guide = conditioning.is_conditional and conditioning.cond_drop_prob > 0
    learned = dict(
        context_guidance=model.model.context_drop_prob > 0,
        guidance_scale=can_guide,
        num_steps="num_steps" in model.head.sampling_options(),
    )
    axes = {name: values for name, values in AXES.items() if learned.get(name, True)}
    own_steps = model.head.sampling_settings().get("num_steps")
    if own_steps not in (None, *AXES["num_steps"]):
        axes["num_steps"] = tuple(own_steps * factor for factor in (1, 2, 4))
    iterations, most = own_iterations(model), model.model.max_seq_len
    if iterations is not None:
        more = (min(iterations * factor, most) for factor in (1, 2, 4))
        axes["num_iterations"] = tuple(dict.fromkeys(more))
    return axes


def own_iterations(model: ImageAutoregressive) -> int | None:
    """The iterations in which a model draws by default; None if it draws one token in each."""
    length = model.model.max_seq_len
    iterations = len(model.model.order_of(length, torch.empty(1, 0).long(), None, None).sizes)
    return None if iterations == length else iterations


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
    """Searches the generation settings whose images are nearest to a dataset's, one by one.

    All settings draw with the same noise, so that small differences show. Set `model.generation` to
    the result's `settings` to draw with them.

    Args:
        dataset: of images (c h w) with values in [0, 1], or of pairs of an image and its label;
            best not those trained on.
        count: images to draw with each of the settings; by default as many as the dataset has, from
            500 to 2,000.
        features: the network in whose features the Fréchet distance decides, with precision and
            recall beside it. By default the sliced Wasserstein distance decides, which needs none:
            it sees contrast, detail and layout, but not what is shown.
        axes: the values to try by the name of the setting, instead of `AXES`.
        sample_kwargs: further arguments of `sample`, such as `precision`.
    """
    count = min(max(len(dataset), 500), 2000) if count is None else count
    check_positive_int(count=count, batch_size=batch_size)
    check_distances("half of the dataset", len(dataset) // 2, features)
    check_distances("count", count, features)
    axes = axes_of(model) if axes is None else axes
    for name in axes:
        check_choice("a setting in axes", name, (*AXES, "num_iterations"))
        if name in sample_kwargs:
            raise ValueError(
                f"{name} is searched for: it must not be among the arguments of sample, "
                f"got {sample_kwargs[name]!r}"
            )
    device = next(model.parameters()).device
    real, labels = dataset_batch(dataset, range(len(dataset)))
    model.tokenizer.check_images(real)
    if labels is not None:
        labels = labels[torch.arange(count) * len(labels) // count]
    # what is wrong with the arguments is found before the work
    model.stream(labels=None if labels is None else labels[:1], **sample_kwargs)

    def seen(images: Tensor) -> tuple[list[Tensor], Tensor | None]:
        images = (images * 255).round() / 255  # 8-bit values, as files have
        generator = torch.Generator().manual_seed(seed)
        patches = pyramid_patches(images, patches_per_image(len(images)), generator)
        if features is None:
            return patches, None
        return patches, features_of(features, images, device=device)[0]

    metric = "sliced_wasserstein" if features is None else "frechet_distance"
    of_real = seen(real)
    own = dict(
        num_steps=model.head.sampling_settings().get("num_steps"),
        num_iterations=own_iterations(model),
    )
    plain = tuple(own.get(name, getattr(GenerationSettings, name)) for name in axes)
    rows: dict[tuple, dict[str, float]] = {}
    previous = model.generation
    total = 1 + sum(len(values) - 1 for values in axes.values())
    bar = tqdm(total=total, desc="settings", disable=not progress)

    def distances_of(key: tuple, noise_seed: int) -> dict[str, float]:
        model.generation = replace(previous, **dict(zip(axes, key, strict=True)))
        options = dict(batch_size=batch_size, seed=noise_seed, labels=labels, **sample_kwargs)
        images = draw_images(model, count, **options)

        def compare(drawn: Tensor) -> dict[str, float]:
            return all_distances(of_real, seen(drawn), seed=seed)

        # by one process for all: numbers of several devices may differ in the last digit
        (found,) = map_over_processes(compare, [images])
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
                candidates = ((*best[:i], value, *best[i + 1 :]) for value in (best[i], *values))
                best = min(candidates, key=measure)
        limit = measure(best) * (1 + NEAR)
        finalists = [key for key in sorted(rows, key=measure) if measure(key) <= limit][:FINALISTS]
        if len(finalists) > 1:
            for key in finalists:
                again = distances_of(key, seed + 1)
                first = rows[key]
                rows[key] = {name: (value + again[name]) / 2 for name, value in first.items()}
    finally:
        model.generation = previous
        bar.close()

    def departure(key: tuple) -> int:
        """How far settings are from the plain ones, in values of all."""
        given = zip(axes.values(), key, plain, strict=True)
        return sum(
            0 if value == own else 1 + list(values).index(value) for values, value, own in given
        )

    limit = min(map(measure, finalists)) * (1 + MARGIN)
    best = min((key for key in finalists if measure(key) <= limit), key=departure)
    settings = dict(zip(axes, best, strict=True))
    settings |= {name: None for name in own if name in settings and settings[name] == own[name]}
    floor = all_distances(seen(real[::2]), seen(real[1::2]), seed=seed)
    table = {key: dict(zip(axes, key, strict=True)) | row for key, row in rows.items()}
    nearest_first = sorted(table.values(), key=lambda row: row[metric])
    return Tuning(replace(previous, **settings), metric, nearest_first, table[best], floor)
