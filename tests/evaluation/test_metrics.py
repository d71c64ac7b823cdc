import math
import sys

import pytest
import torch
from torch import nn

from autoregressive_diffusion_pytorch.evaluation.metrics import (
    Inception,
    distances,
    features_of,
    load_feature_network,
)


def images(count, channels=1):
    return (
        torch.randint(256, (count, channels, 4, 8), generator=torch.Generator().manual_seed(0))
        / 255
    )


class Network(nn.Module):
    """The mean of each quarter of an image, and logits that tell dark from light."""

    def forward(self, images):
        features = nn.functional.adaptive_avg_pool2d(images, 2).flatten(1)
        return features, torch.stack((features.sum(dim=1), -features.sum(dim=1)), dim=1)


def gaussian(count, width=3, mean=0.0, std=1.0, seed=0):
    return mean + std * torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def test_the_frechet_distance_of_gaussians():
    # Heusel et al. 2017, eq. 6; it errs as the means do, and their squares twice as much
    found = distances(gaussian(400), gaussian(400, mean=2.0, std=1.5, seed=1))
    assert found["frechet_distance"] == pytest.approx(
        3 * (2.0**2 + 0.5**2), rel=5 * 2 / math.sqrt(400) / math.sqrt(3)
    )


def test_distances_of_the_same_and_of_other_images():
    real, other = gaussian(300), gaussian(300, seed=1)
    same, alike, apart = distances(real, real), distances(real, other), distances(real, other + 100)
    assert same["frechet_distance"] == pytest.approx(0, abs=1e-4)
    assert (same["precision"], same["recall"]) == (1, 1)
    assert (apart["precision"], apart["recall"]) == (0, 0)
    assert (
        abs(alike["kernel_distance"]) < 5 * alike["kernel_distance_std"] < apart["kernel_distance"]
    )
    assert alike["kernel_distance_std"] > 1e-3
    assert alike["precision"] > 0.8
    assert alike["recall"] > 0.8
    assert "inception_score" not in same


def test_precision_is_of_the_generated_and_recall_of_the_real_images():
    # generated ones are all real, but of one kind only
    real = torch.cat((gaussian(200), gaussian(200) + 50))
    found = distances(real, gaussian(200, seed=1))
    assert found["precision"] > 0.8
    assert found["recall"] == pytest.approx(0.5, abs=0.1)


def test_the_inception_score_counts_kinds():
    sure = 100 * torch.eye(5).repeat(200, 1)
    assert distances(gaussian(50), gaussian(50), sure)["inception_score"] == pytest.approx(
        5, rel=0.02
    )
    assert distances(gaussian(50), gaussian(50), torch.zeros(1000, 5))[
        "inception_score"
    ] == pytest.approx(1)
    assert "inception_score" not in distances(gaussian(50), gaussian(50), torch.zeros(99, 5))


def test_too_few_images_for_distances():
    with pytest.raises(
        ValueError, match="generated must be of at least 10 images for distances, got 9"
    ):
        distances(gaussian(10), gaussian(9))


@pytest.mark.parametrize(
    ("channels", "shown"), [(1, [0, 0, 0]), (2, [0, 0, 0]), (3, [0, 1, 2]), (4, [0, 1, 2])]
)
def test_a_network_is_shown_three_channels_a_batch_at_a_time(channels, shown):
    data, seen = images(5, channels), []
    features, logits = features_of(
        lambda batch: seen.append(batch) or batch.flatten(1), data, batch_size=2
    )
    assert [len(batch) for batch in seen] == [2, 2, 1]
    assert torch.equal(features, data[:, shown].flatten(1))
    assert logits is None
    features, logits = features_of(Network(), data, batch_size=2)
    assert (features.shape, logits.shape) == ((5, 12), (5, 2))
    with pytest.raises(
        ValueError, match=r"features must be of shape \(5 f\) with f >= 2, got \(5, 3, 4, 8\)"
    ):
        features_of(lambda batch: batch, data)


def test_an_exported_network_is_loaded(tmp_path):
    batch = torch.export.Dim("batch")
    file = tmp_path / "network.pt2"
    torch.export.save(
        torch.export.export(
            Network(), (torch.rand(2, 3, 4, 8),), dynamic_shapes=dict(images={0: batch})
        ),
        file,
    )
    for count in (2, 5):
        data = torch.rand(count, 3, 4, 8)
        for loaded, own in zip(load_feature_network(file)(data), Network()(data), strict=True):
            torch.testing.assert_close(loaded, own)
    (tmp_path / "other.pt2").write_bytes(b"something else")
    with pytest.raises(
        ValueError, match=r"other.pt2 holds no network exported by torch.export.save"
    ):
        load_feature_network(tmp_path / "other.pt2")


def test_inception_loads_its_weights_from_the_cache(tmp_path, monkeypatch):
    # random ones: the real ones are a download
    from torch_fidelity import feature_extractor_inceptionv3 as room

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(room, "load_state_dict_from_url", lambda *_, **__: None)
        patch.setattr(room.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        untrained = Inception()
    torch.save(
        untrained.network.state_dict(),
        tmp_path / "checkpoints" / room.URL_INCEPTION_V3.rsplit("/", 1)[-1],
    )
    features, logits = features_of(Inception(), images(2))
    assert (features.shape, logits.shape) == ((2, 2048), (2, 1008))
    torch.testing.assert_close(features, features_of(untrained, images(2))[0])


def test_without_torch_fidelity(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    for call in (Inception, lambda: distances(gaussian(50), gaussian(50))):
        with pytest.raises(
            ModuleNotFoundError, match=r"pip install 'autoregressive-diffusion-pytorch\[eval\]'"
        ):
            call()
