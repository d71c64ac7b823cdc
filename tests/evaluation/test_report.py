import json
import math
import sys

import pytest
import torch
from helpers import stir
from torch import nn
from torch.utils.data import TensorDataset

from autoregressive_diffusion_pytorch import ImageAutoregressiveDiffusion, ImageAutoregressiveFlow
from autoregressive_diffusion_pytorch.evaluation.report import (
    bits_per_dim,
    evaluate,
    mean_and_standard_error,
    surprise,
)
from autoregressive_diffusion_pytorch.models.settings import GenerationSettings

SMALL = dict(dim=16, depth=1, heads=2, dim_head=8, mlp_depth=1, mlp_width=16)


FAST = dict(solver="midpoint", num_steps=2)


def small_model(model_class=ImageAutoregressiveFlow, **kwargs):
    return stir(
        model_class(**(dict(image_size=(4, 8), patch_size=4, channels=1, model=SMALL) | kwargs)),
        0.02,
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


@pytest.mark.parametrize("model_class", [ImageAutoregressiveDiffusion, ImageAutoregressiveFlow])
def test_bits_of_each_image_of_a_dataset(model_class):
    model, data = small_model(model_class), images(7)
    bits = bits_per_dim(model, data, batch_size=3, **FAST)
    assert bits.shape == (7,)
    assert torch.equal(bits_per_dim(model, data, batch_size=3, **FAST), bits)
    assert not torch.equal(bits_per_dim(model, data, batch_size=3, seed=1, **FAST), bits)
    # each image has its own, whatever the batch: with other noise, of little weight beside images
    # of noise
    one_by_one = bits_per_dim(model, data, batch_size=1, **FAST)
    assert (one_by_one - bits).abs().max() < bits.std() / 5
    # the first ones do not depend on how many follow
    assert torch.equal(bits_per_dim(model, data[:3], batch_size=3, **FAST), bits[:3])


def test_labels_of_a_dataset_reach_the_model(monkeypatch):
    model, seen = small_model(num_classes=3), []
    log_prob = model.model.log_prob
    monkeypatch.setattr(
        model.model, "log_prob", lambda seq, **kw: seen.append(kw["labels"]) or log_prob(seq, **kw)
    )
    bits_per_dim(
        model, TensorDataset(images(5), torch.tensor([2, 0, 1, 1, 0])), batch_size=4, **FAST
    )
    assert [labels.tolist() for labels in seen] == [[2, 0, 1, 1], [0]]


def test_the_standard_error_is_the_spread_of_means():
    values = torch.randn(1000, 100, generator=torch.Generator().manual_seed(0))
    errors = torch.tensor([mean_and_standard_error(row)[1] for row in values])
    assert errors.mean() == pytest.approx(values.mean(dim=1).std().item(), rel=0.1)
    assert mean_and_standard_error(torch.tensor([1.0, 3.0])) == (
        2.0,
        pytest.approx(math.sqrt(2) / math.sqrt(2)),
    )


def test_surprise_is_the_nats_of_the_patches_in_their_places(monkeypatch):
    model, image = small_model(image_size=(8, 4)), images(1)[0].mT
    nats = surprise(model, image, **FAST)
    assert nats.shape == (2, 1)
    expected = model.log_prob(
        image.unsqueeze(0), generator=torch.Generator().manual_seed(0), divergence="exact", **FAST
    )
    torch.testing.assert_close(nats.flatten(), -expected.flatten())
    labelled = small_model(num_classes=2)
    assert not torch.equal(*(surprise(labelled, images(1)[0], label, **FAST) for label in (0, 1)))


def test_too_few_images_for_distances():
    with pytest.raises(
        ValueError, match="count must be of at least 10 images for distances, got 9"
    ):
        evaluate(small_model(), images(12), features=Network(), count=9)
    with pytest.raises(
        ValueError, match="dataset must be of at least 10 images for distances, got 9"
    ):
        evaluate(small_model(), images(9), features=Network())
    with pytest.raises(
        ValueError, match="dataset must be of at least 10 images for distances, got 9"
    ):
        evaluate(small_model(), images(9))
    with pytest.raises(ValueError, match="dataset must hold at least 2 images, got 1"):
        evaluate(small_model(), images(1))


def test_a_report_of_plain_numbers():
    model = small_model()
    options = dict(batch_size=8, sample_kwargs=dict(num_steps=2), solver_kwargs=FAST)
    report = evaluate(
        model, images(12), features=Network(), count=11, evaluations=(2, 4, 8), **options
    )
    assert json.loads(json.dumps(report)) == report
    assert report["images"] == 12
    bits = bits_per_dim(model, images(12), batch_size=8, **FAST)
    assert (
        report["bits_per_dim"]["mean"],
        report["bits_per_dim"]["standard_error"],
    ) == mean_and_standard_error(bits)
    how = {key: report["bits_per_dim"][key] for key in ("solver", "num_steps", "divergence")}
    assert how == dict(solver="midpoint", num_steps=2, divergence="exact")
    assert (report["generated"]["count"], report["generated"]["evaluations"]) == (11, 2)
    assert {
        "frechet_distance",
        "kernel_distance",
        "kernel_distance_std",
        "precision",
        "recall",
    } <= report["generated"].keys()
    assert [point["evaluations"] for point in report["curve"]] == [2, 4, 8]
    # a step of the likelihood's solver takes 4
    assert ["bits_per_dim" in point for point in report["curve"]] == [False, True, True]
    assert report["curve"][0]["generated"] == report["generated"]
    fast = bits_per_dim(model, images(12), batch_size=8, solver="rk4", num_steps=2)
    assert report["curve"][2]["bits_per_dim"]["mean"] == fast.mean().item()
    # distances without a network, in which the network has no say
    report_without = evaluate(model, images(12), count=11, **options)
    assert report_without["generated"].keys() == {"count", "evaluations", "sliced_wasserstein"}
    assert report_without["generated"].items() <= report["generated"].items()
    assert evaluate(model, images(12), count=0, **options).keys() == {"images", "bits_per_dim"}


def test_what_is_wrong_is_found_before_the_work(monkeypatch):
    model = small_model()
    monkeypatch.setattr(model, "bits_per_dim", None)
    for options, message in (
        (dict(solver_kwargs=dict(solver="rk5")), "solver must be one of 'dopri5'"),
        (dict(sample_kwargs=dict(solver="rk5")), "solver must be one of 'dpmpp_2m'"),
        (dict(sample_kwargs=dict(guidance_scale=2.0)), "guidance_scale other than 1 needs a model"),
        (dict(batch_size=0), "batch_size must be a whole number of at least 1, got 0"),
        (dict(evaluations=(4, 0)), r"evaluations\[1\] must be a whole number of at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate(model, images(12), features=Network(), **options)
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(ModuleNotFoundError, match="distances between images need torch-fidelity"):
        evaluate(model, images(12), features=Network())


def test_what_is_not_finite_makes_no_report(monkeypatch):
    model = small_model()
    with pytest.raises(ValueError, match="features must be finite, got some that are not"):
        evaluate(model, images(12), features=lambda images: images.flatten(1) * math.nan)
    monkeypatch.setattr(
        model, "bits_per_dim", lambda images, **_: torch.full((len(images),), math.nan)
    )
    with pytest.raises(FloatingPointError, match="bits per dimension are nan"):
        evaluate(model, images(12))


def test_what_is_no_dataset_of_images():
    model = small_model()
    assert torch.equal(
        bits_per_dim(model, TensorDataset(images(2)), **FAST),
        bits_per_dim(model, images(2), **FAST),
    )
    with pytest.raises(ValueError, match="got 3 things at each place"):
        bits_per_dim(model, TensorDataset(images(2), torch.arange(2), torch.arange(2)))
    with pytest.raises(ValueError, match="dataset must hold images, got none"):
        bits_per_dim(model, images(0))


def test_generated_images_are_of_8_bits_as_real_ones_are():
    seen = []

    def network(batch):
        seen.append(batch)
        return batch.flatten(1)

    evaluate(
        small_model(),
        images(12),
        features=network,
        solver_kwargs=FAST,
        sample_kwargs=dict(num_steps=1),
    )
    assert len(seen) == 2
    for batch in seen:
        torch.testing.assert_close(batch * 255, (batch * 255).round(), rtol=0, atol=1e-3)


def test_labels_are_generated_as_often_as_they_are_in_the_dataset(monkeypatch):
    model, seen = small_model(num_classes=3), []
    sample = model.sample
    monkeypatch.setattr(
        model,
        "sample",
        lambda count, **kw: seen.append(kw["labels"].tolist()) or sample(count, **kw),
    )
    data = TensorDataset(images(12), torch.tensor([0] * 9 + [2] * 3))
    evaluate(
        model,
        data,
        features=Network(),
        count=20,
        solver_kwargs=FAST,
        sample_kwargs=dict(num_steps=1),
    )
    assert seen == [[0] * 15 + [2] * 5]


def test_a_report_is_of_the_model_s_generation_settings():
    model = small_model()
    options = dict(batch_size=8, solver_kwargs=FAST, evaluations=(6,))
    asked = evaluate(
        model,
        images(12),
        sample_kwargs=dict(solver="heun", num_steps=3, temperature=0.5),
        **options,
    )
    model.generation = GenerationSettings(solver="heun", num_steps=3, temperature=0.5)
    report = evaluate(model, images(12), **options)
    assert report == asked
    assert report["generated"]["evaluations"] == 4
    # four steps: of another solver it would be six
    assert report["curve"][0]["generated"]["evaluations"] == 6
    of_euler = evaluate(model, images(12), sample_kwargs=dict(solver="euler"), **options)
    assert of_euler["generated"]["evaluations"] == model.model.head.NUM_SAMPLE_STEPS["euler"]
