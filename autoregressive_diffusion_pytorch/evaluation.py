"""How good a model is: bits per dimension of held-out images, and the field's distances between generated and real images.

The distances are those of torch-fidelity, in the features of any network: by the standard Inception network they are the FID of
Heusel et al. 2017 (https://arxiv.org/abs/1706.08500), the KID of Bińkowski et al. 2018 (https://arxiv.org/abs/1801.01401), the
Inception score of Salimans et al. 2016 (https://arxiv.org/abs/1606.03498), and the precision and recall of Kynkäänniemi et al. 2019
(https://arxiv.org/abs/1904.06991). The sliced Wasserstein distance beside them needs no network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import Module
from torch.utils.data import Dataset

from autoregressive_diffusion_pytorch.checks import check_positive_int
from autoregressive_diffusion_pytorch.image import ImageAutoregressive, batch_generator, draw_batch
from autoregressive_diffusion_pytorch.likelihood import DensitySolver
from autoregressive_diffusion_pytorch.processes import map_over_processes
from autoregressive_diffusion_pytorch.sliced_wasserstein import patches_per_image, pyramid_patches, sliced_wasserstein

# of images (b 3 h w) in [0, 1]: features (b f), or features and the logits (b k) of a classifier
FeatureNetwork = Callable[[Tensor], Tensor | tuple[Tensor, Tensor]]

FEWEST_IMAGES = 10  # for distances
KERNEL_SUBSET = 1000  # images in each of the parts whose mean the kernel distance is, if there are twice as many
SCORE_PARTS = 10  # whose mean the Inception score is, each of ten images or more


def bits_per_dim(
    model: ImageAutoregressive, dataset: Dataset, *, batch_size: int = 64, seed: int = 0, progress: bool = False, **solver_kwargs
) -> Tensor:
    """The bits per dimension of each image of a dataset, (n,), as of `ImageAutoregressive.bits_per_dim`.

    The same seed and batch size give the same noise, whatever the model. The processes of a distributed run share the batches.

    Args:
        dataset: of images (c h w) with values in [0, 1], or of pairs of an image and its label.
        solver_kwargs: as of `Head.log_prob`.
    """
    device = next(model.parameters()).device

    def bits(start: int, images: Tensor, labels: Tensor | None) -> Tensor:
        conditions = {} if labels is None else dict(labels=labels.to(device))
        generator = batch_generator(seed, start, device)
        return model.bits_per_dim(images.to(device), **conditions, generator=generator, **solver_kwargs).cpu()

    return torch.cat(_map_over_batches(bits, dataset, batch_size, "likelihood" if progress else None))


def mean_and_standard_error(values: Tensor) -> tuple[float, float]:
    """The mean of two or more independent values, and the standard deviation of such means."""
    return values.mean().item(), values.std().item() / math.sqrt(len(values))


def surprise(model: ImageAutoregressive, image: Tensor, label: int | None = None, seed: int = 0, **solver_kwargs) -> Tensor:
    """How surprising each patch of an image (c h w) is, given those before it: nats (rows columns), from the exact divergence.

    Args:
        solver_kwargs: as of `Head.log_prob`.
    """
    device = next(model.parameters()).device
    conditions = {} if label is None else dict(labels=torch.tensor([label], device=device))
    generator = torch.Generator(device).manual_seed(seed)
    options = dict(divergence="exact") | solver_kwargs
    log_probs = model.log_prob(image.unsqueeze(0).to(device), **conditions, generator=generator, **options)
    return -log_probs.view([size // patch for size, patch in zip(model.image_size, model.patch_size, strict=True)]).cpu()


class Inception(Module):
    """The standard Inception network, as of torch-fidelity, which downloads its weights into the cache of torch.hub.

    Raises:
        ModuleNotFoundError: torch-fidelity is not installed.
        OSError: the weights are not in the cache and cannot be downloaded.
    """

    def __init__(self):
        super().__init__()
        _need_torch_fidelity()
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        self.network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048", "logits_unbiased"], verbose=False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.network((images * 255).round().to(torch.uint8))


def load_feature_network(file: str | Path) -> Module:
    """A feature network from a file that `torch.export.save` wrote; its number of images must be left open (a dynamic shape).

    Raises:
        ValueError: the file holds no such thing.
    """
    try:
        return torch.export.load(file).module()
    except Exception as error:
        raise ValueError(f"{file} holds no network exported by torch.export.save: {error}") from error


@torch.no_grad()
def features_of(network: FeatureNetwork, images: Tensor, *, batch_size: int = 64, device=None) -> tuple[Tensor, Tensor | None]:
    """The features (n f) that a network sees in images (n c h w) in [0, 1], and the logits (n k) if it gives them, on the CPU.

    It is shown three channels: of grey images the same three times, of those with opacity the others.
    """
    features, logits = [], []
    for batch in images.split(batch_size):
        batch = batch[:, :1].expand(-1, 3, -1, -1) if batch.shape[1] < 3 else batch[:, :3]
        seen = network(batch.to(device))
        seen, *classes = seen if isinstance(seen, (tuple, list)) else (seen,)
        if seen.ndim != 2 or len(seen) != len(batch) or seen.shape[1] < 2:
            raise ValueError(f"features must be of shape ({len(batch)} f) with f >= 2, got {tuple(seen.shape)}")
        if not seen.isfinite().all():
            raise ValueError("features must be finite, got some that are not")
        features.append(seen.float().cpu())
        logits += [part.float().cpu() for part in classes[:1]]
    return torch.cat(features), torch.cat(logits) if logits else None


def distances(real: Tensor, generated: Tensor, logits: Tensor | None = None) -> dict[str, float]:
    """The distances between features (n f) of real and generated images; by the logits (n k) of the latter, the Inception score.

    All depend on how many images there are: compare only figures of equally many.

    Returns:
        `frechet_distance`; `kernel_distance` with its standard deviation over parts; `precision`, the share of generated images
        that lie among real ones, and `recall`, the share of real ones that lie among generated ones, both by 3 nearest neighbours;
        and of 100 generated images or more `inception_score`, with its standard deviation over parts.
    """
    _need_torch_fidelity()
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    _check_enough("real", len(real))
    _check_enough("generated", len(generated))
    statistics = [fid_features_to_statistics(features.double()) for features in (real, generated)]
    subset = min(KERNEL_SUBSET, len(real) // 2, len(generated) // 2)
    kernel = kid_features_to_metric(generated.double(), real.double(), kid_subset_size=subset, verbose=False)
    neighbours = prc_features_to_metric(generated, real, save_cpu_ram=True, verbose=False)
    result = dict(
        frechet_distance=fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"],
        kernel_distance=kernel["kernel_inception_distance_mean"],
        kernel_distance_std=kernel["kernel_inception_distance_std"],
        precision=neighbours["precision"],
        recall=neighbours["recall"],
    )
    if logits is not None and len(logits) >= 10 * SCORE_PARTS:
        score = isc_features_to_metric(logits, splits=SCORE_PARTS)
        result |= dict(inception_score=score["inception_score_mean"], inception_score_std=score["inception_score_std"])
    return result


def all_distances(
    real: tuple[list[Tensor], Tensor | None],
    generated: tuple[list[Tensor], Tensor | None],
    logits: Tensor | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """The sliced Wasserstein distance between patches of real and generated images, the mean over the levels; and where there are
    features of both, the `distances` between these."""
    by_level = sliced_wasserstein(real[0], generated[0], seed)
    found = dict(sliced_wasserstein=sum(by_level) / len(by_level))
    return found if real[1] is None else found | distances(real[1], generated[1], logits)


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
) -> dict:
    """A report on a model, of plain numbers: bits per dimension of a dataset's images, and distances of generated images to them.

    The processes of a distributed run share the work, and all get the report.

    Args:
        dataset: of images (c h w) with values in [0, 1], or of pairs of an image and its label, not among those trained on.
        features: the network in whose features distances are, on the model's device and in evaluation mode. Without one there is
            the sliced Wasserstein distance alone.
        count: images to generate, by default as many as the dataset has; with labels, each as often as there. 0 for none.
        evaluations: numbers of evaluations of the head's network at which to measure all of it again: bits per dimension by the
            steps of "rk4" that fit in (from 4 on), the distances by those of the sampler's solver. With few evaluations the former
            show the error of the solver, which may well look like a better model.
        sample_kwargs: as of `ImageAutoregressive.sample`.
        solver_kwargs: as of `Head.log_prob`.

    Returns:
        `images`, how many the dataset has; `bits_per_dim`, their mean, its standard error (in which the solver's own error is not)
        and how they were computed; `generated`, the distances and of what; and `curve`, both for each of `evaluations`.
    """
    sample_kwargs, solver_kwargs = sample_kwargs or {}, solver_kwargs or {}
    count = len(dataset) if count is None else count
    check_positive_int(batch_size=batch_size, **{f"evaluations[{i}]": most for i, most in enumerate(evaluations)})
    if len(dataset) < 2:
        raise ValueError(f"dataset must hold at least 2 images, got {len(dataset)}")
    head = model.model.head
    device = next(model.parameters()).device
    # what is wrong with the arguments is found before the work
    DensitySolver(**solver_kwargs)
    if count != 0:
        check_distances("dataset", len(dataset), features)
        check_distances("count", count, features)
        _, some_labels = dataset_batch(dataset, range(1))
        model.stream(labels=some_labels, **sample_kwargs)

    def seen(start: int, images: Tensor, labels: Tensor | None, of: int) -> tuple:
        """What the distances are of: patches, and with a feature network features and logits; and labels."""
        generator = batch_generator(seed, start, torch.device("cpu"))
        patches = pyramid_patches(images.cpu(), patches_per_image(of), generator)
        network = (None, None) if features is None else features_of(features, images, device=device)
        return patches, *network, labels

    def joined(parts: list[tuple]) -> tuple:
        patches, *others = zip(*parts, strict=True)
        return [torch.cat(level) for level in zip(*patches, strict=True)], *(_joined(other) for other in others)

    if count != 0:
        see_real = partial(seen, of=len(dataset))
        real, real_features, _, labels = joined(
            _map_over_batches(see_real, dataset, batch_size, "real images" if progress else None)
        )
        if labels is not None:
            labels = labels[torch.arange(count) * len(dataset) // count]

    def likelihood(**kwargs) -> dict:
        bits = bits_per_dim(model, dataset, batch_size=batch_size, seed=seed, progress=progress, **kwargs)
        mean, error = mean_and_standard_error(bits)
        if not math.isfinite(mean):
            raise FloatingPointError(f"bits per dimension are {mean}: more steps of the solver, or smaller tolerances, may do")
        return dict(mean=mean, standard_error=error, **DensitySolver(**kwargs).description(model.model.dim_input))

    def generated(num_steps: int | None = None, solver: str | None = None, **kwargs) -> dict:
        def see_batch(start: int) -> tuple:
            stop = min(start + batch_size, count)
            steps = dict(num_steps=num_steps, solver=solver)
            images = draw_batch(model, start, stop, seed=seed, labels=labels, **steps, **kwargs)
            # 8-bit values, as the real ones have
            return seen(start, (images * 255).round() / 255, None, of=count)

        name = "generated images" if progress else None
        patches, found, logits, _ = joined(map_over_processes(see_batch, range(0, count, batch_size), name))
        measured = all_distances((real, real_features), (patches, found), logits, seed)
        evaluations = head.num_evaluations(*model.generation.steps_and_solver(num_steps, solver, head.solver))
        return dict(count=count, evaluations=evaluations, **measured)

    report = dict(images=len(dataset), bits_per_dim=likelihood(**solver_kwargs))
    if count != 0:
        report["generated"] = generated(**sample_kwargs)
    for most in evaluations:
        point = dict(evaluations=most)
        if most >= 4:
            point["bits_per_dim"] = likelihood(**solver_kwargs | dict(solver="rk4", num_steps=most // 4))
        if count != 0:
            _, solver = model.generation.steps_and_solver(solver=sample_kwargs.get("solver"))
            fitting = [steps for steps in range(1, most + 1) if head.num_evaluations(steps, solver) <= most]
            if fitting:
                point["generated"] = generated(**sample_kwargs | dict(num_steps=fitting[-1]))
        if len(point) > 1:
            report.setdefault("curve", []).append(point)
    return report


def _joined(parts: Sequence[Tensor | None]) -> Tensor | None:
    return None if parts[0] is None else torch.cat(parts)


def _map_over_batches(function: Callable, dataset: Dataset, batch_size: int, progress: str | None) -> list:
    """`function(start, images, labels)` of each batch of a dataset, by the processes of a distributed run; a bar of this name."""
    check_positive_int(batch_size=batch_size)
    if len(dataset) == 0:
        raise ValueError("dataset must hold images, got none")

    def call(start: int):
        return function(start, *dataset_batch(dataset, range(start, min(start + batch_size, len(dataset)))))

    return map_over_processes(call, range(0, len(dataset), batch_size), progress)


def dataset_batch(dataset: Dataset, indices: Sequence[int]) -> tuple[Tensor, Tensor | None]:
    """Images (b c h w) of a dataset, and their labels (b,) if it has them."""
    items = [item if isinstance(item, (tuple, list)) else (item,) for item in (dataset[i] for i in indices)]
    if len(items[0]) not in (1, 2):
        raise ValueError(f"dataset must hold images, or pairs of an image and its label, got {len(items[0])} things at each place")
    images, *labels = zip(*items, strict=True)
    return torch.stack(images), torch.as_tensor(labels[0]) if labels else None


def check_distances(name: str, count: int, features: FeatureNetwork | None) -> None:
    """Whether there are enough images for distances, and what measures them."""
    if features is not None:
        _need_torch_fidelity()
    _check_enough(name, count)


def _check_enough(name: str, count: int) -> None:
    if count < FEWEST_IMAGES:
        raise ValueError(f"{name} must be of at least {FEWEST_IMAGES} images for distances, got {count}")


def _need_torch_fidelity() -> None:
    try:
        import torch_fidelity  # noqa: F401 - asks whether it is there
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "distances between images need torch-fidelity: pip install 'autoregressive-diffusion-pytorch[eval]'"
        ) from error
