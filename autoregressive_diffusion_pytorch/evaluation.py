"""How good a model is: bits per dimension of held-out images, and the field's distances between generated and real images.

The distances are those of torch-fidelity, in the features of any network: by the standard Inception network they are the FID of
Heusel et al. 2017 (https://arxiv.org/abs/1706.08500), the KID of Bińkowski et al. 2018 (https://arxiv.org/abs/1801.01401), the
Inception score of Salimans et al. 2016 (https://arxiv.org/abs/1606.03498), and the precision and recall of Kynkäänniemi et al. 2019
(https://arxiv.org/abs/1904.06991).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module
from torch.utils.data import Dataset
from tqdm import tqdm

from autoregressive_diffusion_pytorch.image import ImageAutoregressive, draw_images
from autoregressive_diffusion_pytorch.processes import map_over_processes

# of images (b 3 h w) in [0, 1]: features (b f), or features and the logits (b k) of a classifier
FeatureNetwork = Callable[[Tensor], Tensor | tuple[Tensor, Tensor]]

FEWEST_IMAGES = 10  # the parts whose mean the Inception score is
KERNEL_SUBSET = 1000  # images in each part whose mean the kernel distance is, if there are as many


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

    def bits(start: int) -> Tensor:
        images, labels = _batch(dataset, range(start, min(start + batch_size, len(dataset))))
        own_seed = int(np.random.SeedSequence((seed, start)).generate_state(1, np.uint64)[0])
        conditions = {} if labels is None else dict(labels=labels.to(device))
        generator = torch.Generator(device).manual_seed(own_seed)
        return model.bits_per_dim(images.to(device), **conditions, generator=generator, **solver_kwargs).cpu()

    with tqdm(total=len(dataset), desc="images", disable=not progress) as bar:

        def bits_and_progress(start: int) -> Tensor:
            part = bits(start)
            bar.update(len(part))
            return part

        return torch.cat(map_over_processes(bits_and_progress, range(0, len(dataset), batch_size)))


def mean_and_standard_error(values: Tensor) -> tuple[float, float]:
    """The mean of independent values, and the standard deviation of such means."""
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
        if seen.ndim != 2 or len(seen) != len(batch):
            raise ValueError(f"features must be of shape ({len(batch)} f), got {tuple(seen.shape)}")
        features.append(seen.float().cpu())
        logits += [part.float().cpu() for part in classes[:1]]
    return torch.cat(features), torch.cat(logits) if logits else None


def distances(real: Tensor, generated: Tensor, logits: Tensor | None = None) -> dict[str, float]:
    """The distances between features (n f) of real and generated images; by the logits (n k) of the latter, the Inception score.

    All depend on how many images there are: compare only figures of equally many.

    Returns:
        `frechet_distance`; `kernel_distance` with its standard deviation over parts; `precision`, the share of generated images
        that lie among real ones, and `recall`, the share of real ones that lie among generated ones, both by 3 nearest neighbours;
        and `inception_score`, with its standard deviation.
    """
    _need_torch_fidelity()
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    _check_enough("real", len(real))
    _check_enough("generated", len(generated))
    statistics = [fid_features_to_statistics(features.double()) for features in (real, generated)]
    subset = min(KERNEL_SUBSET, len(real), len(generated))
    kernel = kid_features_to_metric(generated.double(), real.double(), kid_subset_size=subset, verbose=False)
    neighbours = prc_features_to_metric(generated, real, verbose=False)
    result = dict(
        frechet_distance=fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"],
        kernel_distance=kernel["kernel_inception_distance_mean"],
        kernel_distance_std=kernel["kernel_inception_distance_std"],
        precision=neighbours["precision"],
        recall=neighbours["recall"],
    )
    if logits is not None:
        score = isc_features_to_metric(logits, splits=FEWEST_IMAGES)
        result |= dict(inception_score=score["inception_score_mean"], inception_score_std=score["inception_score_std"])
    return result


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

    Args:
        dataset: of images (c h w) with values in [0, 1], or of pairs of an image and its label, not among those trained on.
        features: the network in whose features the distances are; none to generate no images.
        count: images to generate, by default as many as the dataset has; with labels, each as often as there.
        evaluations: numbers of evaluations of the head's network at which to measure all of it again.
        sample_kwargs: as of `ImageAutoregressive.sample`.
        solver_kwargs: as of `Head.log_prob`.

    Returns:
        `bits_per_dim` with its standard error, by solver and divergence; `generated`, the distances; and `curve`, a list of them.
    """
    options = dict(batch_size=batch_size, seed=seed, progress=progress)
    sample_kwargs, solver_kwargs = sample_kwargs or {}, solver_kwargs or {}
    count = len(dataset) if count is None else count
    if len(dataset) < 2:
        raise ValueError(f"dataset must hold at least 2 images, got {len(dataset)}")
    labels = None
    if features is not None:
        for name, given in (("dataset", len(dataset)), ("count", count)):
            _check_enough(name, given)
        device = next(model.parameters()).device
        parts = []
        for start in range(0, len(dataset), batch_size):
            images, some = _batch(dataset, range(start, min(start + batch_size, len(dataset))))
            parts.append((features_of(features, images, device=device)[0], some))
        real = torch.cat([seen for seen, _ in parts])
        if parts[0][1] is not None:
            labels = torch.cat([some for _, some in parts])[torch.arange(count) * len(dataset) // count]

    def likelihood(**kwargs) -> dict:
        mean, error = mean_and_standard_error(bits_per_dim(model, dataset, **options, **kwargs))
        return dict(mean=mean, standard_error=error)

    def generated(**kwargs) -> dict:
        images = draw_images(model, count, labels=labels, **options, **kwargs)
        return distances(real, *features_of(features, images, batch_size=batch_size, device=device))

    head = model.model.head
    report = dict(images=len(dataset), bits_per_dim=likelihood(**solver_kwargs))
    if features is not None:
        steps = head.num_evaluations(sample_kwargs.get("num_steps"), sample_kwargs.get("solver"))
        report["generated"] = dict(count=count, evaluations=steps, **generated(**sample_kwargs))
    for most in evaluations:
        point = dict(evaluations=most)
        if most >= 4:
            point["bits_per_dim"] = likelihood(**solver_kwargs | dict(solver="rk4", num_steps=most // 4))
        if features is not None:
            solver = sample_kwargs.get("solver")
            fitting = [steps for steps in range(1, most + 1) if head.num_evaluations(steps, solver) <= most]
            if fitting:
                point["generated"] = generated(**sample_kwargs | dict(num_steps=fitting[-1]))
        report.setdefault("curve", []).append(point)
    return report


def _batch(dataset: Dataset, indices: Sequence[int]) -> tuple[Tensor, Tensor | None]:
    """Images (b c h w) of a dataset, and their labels (b,) if it has them."""
    items = [dataset[i] for i in indices]
    if not isinstance(items[0], (tuple, list)):
        return torch.stack(items), None
    images, labels = zip(*items, strict=True)
    return torch.stack(images), torch.as_tensor(labels)


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
