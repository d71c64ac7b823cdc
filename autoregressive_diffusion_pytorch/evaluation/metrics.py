"""Distances between generated and real images, in the features of any network.

Those of torch-fidelity: with the standard Inception network they are the FID of Heusel et al. 2017
(https://arxiv.org/abs/1706.08500), the KID of Bińkowski et al. 2018
(https://arxiv.org/abs/1801.01401), the Inception score of Salimans et al. 2016
(https://arxiv.org/abs/1606.03498), and the precision and recall of Kynkäänniemi et al. 2019
(https://arxiv.org/abs/1904.06991). The sliced Wasserstein distance beside them needs no network.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import Module

from .exported_network import ExportedNetwork
from .sliced_wasserstein import sliced_wasserstein

# of images (b 3 h w) in [0, 1]: features (b f), or features and the logits (b k) of a classifier
FeatureNetwork = Callable[[Tensor], Tensor | tuple[Tensor, Tensor]]

MIN_IMAGES = 10  # for distances
KERNEL_SUBSET = 1000  # images per part of the kernel distance, if there are twice as many
SCORE_PARTS = 10  # of the Inception score, each of ten images or more


class Inception(Module):
    """The standard Inception network of torch-fidelity, which downloads its weights.

    Raises:
        ModuleNotFoundError: torch-fidelity is not installed.
        OSError: the weights are not in the cache and cannot be downloaded.
    """

    def __init__(self):
        super().__init__()
        _need_torch_fidelity()
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        features = ["2048", "logits_unbiased"]
        self.network = FeatureExtractorInceptionV3("inception-v3-compat", features, verbose=False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.network((images * 255).round().to(torch.uint8))


def load_feature_network(file: str | Path) -> Module:
    """A feature network from a file of `torch.export.save`, exported for any number of images.

    No code from the file is run: see `ExportedNetwork`.

    Raises:
        ValueError: the file holds no such thing.
    """
    return ExportedNetwork(file)


@torch.no_grad()
def features_of(
    network: FeatureNetwork, images: Tensor, *, batch_size: int = 64, device=None
) -> tuple[Tensor, Tensor | None]:
    """A network's features (n f) of images (n c h w) in [0, 1], and logits (n k) if it has them.

    On the CPU. The network sees three channels: of grey images the same three times, of those with
    opacity the others.
    """
    features, logits = [], []
    for batch in images.split(batch_size):
        batch = batch[:, :1].expand(-1, 3, -1, -1) if batch.shape[1] < 3 else batch[:, :3]
        seen = network(batch.to(device))
        seen, *classes = seen if isinstance(seen, (tuple, list)) else (seen,)
        if seen.ndim != 2 or len(seen) != len(batch) or seen.shape[1] < 2:
            raise ValueError(
                f"features must be of shape ({len(batch)} f) with f >= 2, got {tuple(seen.shape)}"
            )
        if not seen.isfinite().all():
            raise ValueError("features must be finite, got some that are not")
        features.append(seen.float().cpu())
        logits += [part.float().cpu() for part in classes[:1]]
    return torch.cat(features), torch.cat(logits) if logits else None


def distances(real: Tensor, generated: Tensor, logits: Tensor | None = None) -> dict[str, float]:
    """The distances between features (n f) of real and generated images.

    All depend on the number of images: compare only figures of equally many.

    Args:
        logits: (n k) of the generated images, for the Inception score.

    Returns:
        `frechet_distance`; `kernel_distance` with its std over parts; `precision`, the share of
        generated images that lie among real ones, and `recall`, the share of real ones that lie
        among generated ones, both by 3 nearest neighbours; and of 100 generated images or more
        `inception_score`, with its std over parts.
    """
    _need_torch_fidelity()
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    _check_enough("real", len(real))
    _check_enough("generated", len(generated))
    quiet = dict(verbose=False)
    doubles = [generated.double(), real.double()]
    statistics = map(fid_features_to_statistics, reversed(doubles))
    frechet = fid_statistics_to_metric(*statistics, **quiet)
    subset = min(KERNEL_SUBSET, len(real) // 2, len(generated) // 2)
    kernel = kid_features_to_metric(*doubles, kid_subset_size=subset, **quiet)
    neighbours = prc_features_to_metric(generated, real, save_cpu_ram=True, **quiet)
    result = dict(
        frechet_distance=frechet["frechet_inception_distance"],
        kernel_distance=kernel["kernel_inception_distance_mean"],
        kernel_distance_std=kernel["kernel_inception_distance_std"],
        precision=neighbours["precision"],
        recall=neighbours["recall"],
    )
    if logits is not None and len(logits) >= 10 * SCORE_PARTS:
        score = isc_features_to_metric(logits, splits=SCORE_PARTS)
        result["inception_score"] = score["inception_score_mean"]
        result["inception_score_std"] = score["inception_score_std"]
    return result


def all_distances(
    real: tuple[list[Tensor], Tensor | None],
    generated: tuple[list[Tensor], Tensor | None],
    logits: Tensor | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """The distances between the patches by level, and the features if any, of two sets of images.

    The sliced Wasserstein distance is the mean over the levels; the others are as of `distances`.
    """
    by_level = sliced_wasserstein(real[0], generated[0], seed)
    found = dict(sliced_wasserstein=sum(by_level) / len(by_level))
    return found if real[1] is None else found | distances(real[1], generated[1], logits)


def check_distances(name: str, count: int, features: FeatureNetwork | None) -> None:
    """Whether there are enough images for distances, and what measures them."""
    if features is not None:
        _need_torch_fidelity()
    _check_enough(name, count)


def _check_enough(name: str, count: int) -> None:
    if count < MIN_IMAGES:
        raise ValueError(
            f"{name} must be of at least {MIN_IMAGES} images for distances, got {count}"
        )


def _need_torch_fidelity() -> None:
    try:
        import torch_fidelity  # noqa: F401 - asks whether it is there
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "distances between images need torch-fidelity: "
            "pip install 'autoregressive-diffusion-pytorch[eval]'"
        ) from error
