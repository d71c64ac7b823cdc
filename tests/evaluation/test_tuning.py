import copy
from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from helpers import stir
from torch import nn
from torch.utils.data import TensorDataset

from autoregressive_diffusion_pytorch import ImageAutoregressiveFlow, ImageMaskedAutoregressive
from autoregressive_diffusion_pytorch.evaluation import tuning
from autoregressive_diffusion_pytorch.evaluation.drawing import draw_images
from autoregressive_diffusion_pytorch.evaluation.sliced_wasserstein import (
    patches_per_image,
    pyramid_patches,
    sliced_wasserstein,
)
from autoregressive_diffusion_pytorch.evaluation.tuning import AXES, MARGIN, axes_of, tune
from autoregressive_diffusion_pytorch.models.settings import GenerationSettings
from autoregressive_diffusion_pytorch.utils.rng import randn

SIZES = dict(dim=16, depth=1, heads=2, dim_head=8, mlp_depth=1, mlp_width=16)


def small_model(model_class=ImageAutoregressiveFlow, num_classes=None, **kwargs):
    return model_class(
        image_size=8, patch_size=4, channels=1, num_classes=num_classes, model=SIZES | kwargs
    )


class Known(ImageAutoregressiveFlow):
    """Whose images have too much contrast or are too bright unless drawn with the right
    settings."""

    right: ClassVar = dict(context_guidance=1.5, temperature=0.95)

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.calls = []

    def sample(self, batch_size, *, labels=None, generator=None, **kwargs):
        self.calls.append(dict(kwargs, labels=labels, settings=self.generation))
        off = {
            name: abs(getattr(self.generation, name) - value) for name, value in self.right.items()
        }
        noise = 0.1 * randn((batch_size, 1, 8, 8), generator, torch.device("cpu"), torch.float32)
        contrast, brightness = (
            1 + off["context_guidance"],
            off["temperature"] * (1 + off["context_guidance"]),
        )
        return (0.4 + brightness + contrast * noise).clamp(0, 1)


def real_images(count):
    return (
        0.4 + 0.1 * torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(5))
    ).clamp(0, 1)


def test_finds_the_settings_that_draw_what_is_real():
    model = small_model(Known)
    model.generation = previous = GenerationSettings(temperature=0.3)
    found = tune(model, real_images(300), count=300, axes=AXES)
    assert found.settings == GenerationSettings(**Known.right)
    assert found.metric == "sliced_wasserstein"
    assert model.generation is previous
    distances = [row["sliced_wasserstein"] for row in found.rows]
    assert distances == sorted(distances)
    assert found.rows[0].keys() == {*AXES, "sliced_wasserstein"}
    assert Known.right.items() <= found.rows[0].items()
    # none is measured twice
    assert len({tuple(row[name] for name in AXES) for row in found.rows}) == len(found.rows)
    assert found.floor["sliced_wasserstein"] < 2 * distances[0]
    assert all(call["settings"].solver is None for call in model.calls)


def test_a_full_grid_is_not_better_by_more_than_the_margin():
    model, real = small_model(Known), real_images(200)
    axes = dict(context_guidance=(1.0, 1.25, 1.5, 2.0), temperature=(0.9, 0.95, 1.0))
    found = tune(model, real, count=200, axes=axes)

    def distance(settings):
        model.generation = settings
        both = (
            (part * 255).round() / 255
            for part in (real, draw_images(model, 200, batch_size=64, seed=0))
        )
        patches = [
            pyramid_patches(part, patches_per_image(200), torch.Generator().manual_seed(0))
            for part in both
        ]
        return sliced_wasserstein(*patches)[0]

    grid = [
        distance(GenerationSettings(context_guidance=context_guidance, temperature=temperature))
        for context_guidance in axes["context_guidance"]
        for temperature in axes["temperature"]
    ]
    chosen = distance(found.settings)
    (row,) = (
        row
        for row in found.rows
        if all(row[name] == getattr(found.settings, name) for name in axes)
    )
    assert row["sliced_wasserstein"] == chosen
    assert chosen * (1 - MARGIN) <= min(grid)
    assert len(found.rows) < len(grid)


def test_what_makes_no_difference_stays_as_it_was_learned(monkeypatch):
    model = small_model(Known)
    monkeypatch.setattr(Known, "right", dict(context_guidance=1.0, temperature=1.0))
    found = tune(model, real_images(50), count=50)
    assert found.settings == GenerationSettings()
    assert found.chosen["num_steps"] == 8
    # nearer by less than the margin: as it was learned
    model.calls.clear()
    monkeypatch.setattr(Known, "right", dict(context_guidance=1.002, temperature=1.0))
    found = tune(model, real_images(300), count=300, axes=dict(context_guidance=(1.0, 1.002)))
    assert found.settings == GenerationSettings()
    assert len(found.rows) == 2


@pytest.mark.parametrize("calls", [1, 3])
def test_the_settings_come_back_where_sampling_fails(monkeypatch, calls):
    model = small_model(Known)
    model.generation = previous = GenerationSettings(num_steps=3)
    sample = Known.sample

    def fail(model, *args, **kwargs):
        if len(model.calls) == calls - 1:
            raise RuntimeError("no memory")
        return sample(model, *args, **kwargs)

    monkeypatch.setattr(Known, "sample", fail)
    with pytest.raises(RuntimeError, match="no memory"):
        tune(model, real_images(20), count=20)
    assert model.generation is previous


def test_a_model_of_its_own_tokens_finds_its_own_temperature():
    # images that the model itself has drawn at another temperature
    model = stir(small_model(), 0.05)
    model.generation = GenerationSettings(temperature=0.6, num_steps=4)
    real = draw_images(model, 400, batch_size=100, seed=1)
    model.generation = GenerationSettings()
    found = tune(
        model,
        real,
        count=400,
        axes=dict(num_steps=(4,), temperature=(0.4, 0.6, 0.8)),
        batch_size=400,
    )
    assert found.settings.temperature == 0.6


def test_only_what_was_learned_is_tried():
    assert axes_of(small_model()).keys() == AXES.keys() - {"guidance_scale"}
    assert axes_of(small_model(num_classes=3)).keys() == AXES.keys()
    assert axes_of(small_model(context_drop_prob=0.0)).keys() == {"temperature", "num_steps"}
    assert axes_of(small_model(num_classes=3, cond_drop_prob=0.0)).keys() == AXES.keys() - {
        "guidance_scale"
    }


def test_iterations_are_tried_of_models_that_draw_several_tokens_in_each():
    sizes = dict(image_size=8, patch_size=2, channels=1, model=SIZES | dict(head="energy"))
    model = stir(ImageMaskedAutoregressive(**sizes))
    assert axes_of(model)["num_iterations"] == (8, 16)
    seen, sample = [], model.sample
    model.sample = lambda *args, **kwargs: (
        seen.append(model.generation.num_iterations) or sample(*args, **kwargs)
    )
    found = tune(model, real_images(20), count=10, axes=dict(num_iterations=(8, 16)))
    assert set(seen) == {8, 16}
    assert found.settings.num_iterations in (None, 16)
    random = dict(SIZES, order="random")
    random = ImageAutoregressiveFlow(image_size=8, patch_size=2, channels=1, model=random)
    assert "num_iterations" not in axes_of(random)


def test_bad_axes_and_arguments_that_would_hide_them():
    model, real = small_model(Known), real_images(20)
    with pytest.raises(
        ValueError, match=r"a setting in axes must be one of 'context_guidance', .*, got 'solver'"
    ):
        tune(model, real, axes=dict(solver=("euler",)))
    with pytest.raises(
        ValueError,
        match=r"temperature is searched for: it must not be among the arguments of sample, "
        r"got 0\.5",
    ):
        tune(model, real, temperature=0.5)
    assert model.calls == []


def test_labels_come_as_often_as_in_the_dataset():
    model = small_model(Known, num_classes=3)
    data = TensorDataset(real_images(40), torch.tensor([0] * 30 + [2] * 10))
    tune(model, data, count=20, axes=dict(temperature=(0.9, 1.0)), batch_size=16)
    labels = [call["labels"].tolist() for call in model.calls]
    # of both temperatures, and of both once more
    assert labels == [[0] * 15 + [2], [2] * 4] * 4


def test_the_same_noise_with_all_settings_and_further_arguments_reach_the_sampler(monkeypatch):
    model = small_model(Known)
    seeds, draw = [], tuning.draw_images

    def record(model, count, **kwargs):
        seeds.append((count, kwargs["seed"], kwargs["batch_size"]))
        return draw(model, count, **kwargs)

    monkeypatch.setattr(tuning, "draw_images", record)
    tune(
        model,
        real_images(20),
        axes=dict(temperature=(0.9, 1.0)),
        seed=7,
        batch_size=250,
        precision="no",
    )
    # what comes near is drawn once more with other noise
    assert seeds == [(500, 7, 250)] * 2 + [(500, 8, 250)] * 2
    assert all(call["precision"] == "no" for call in model.calls)


class Brightness(nn.Module):
    def forward(self, images):
        return torch.stack((images.mean(dim=(1, 2, 3)), images.std(dim=(1, 2, 3))), dim=1)


def test_a_network_decides():
    model = small_model(Known)
    found = tune(
        model,
        real_images(100),
        count=100,
        features=Brightness(),
        axes=dict(context_guidance=(1.0, 1.5, 2.0)),
    )
    assert found.metric == "frechet_distance"
    assert found.settings == GenerationSettings(context_guidance=1.5)
    assert {"sliced_wasserstein", "precision", "recall"} <= found.rows[0].keys()
    distances = [row["frechet_distance"] for row in found.rows]
    assert distances == sorted(distances)
    assert found.floor.keys() == found.rows[0].keys() - {"context_guidance"}


def test_what_is_wrong_is_found_before_the_work():
    model = small_model(Known)
    for options, message in (
        (
            dict(dataset=real_images(19)),
            "half of the dataset must be of at least 10 images for distances, got 9",
        ),
        (dict(count=9), "count must be of at least 10 images for distances, got 9"),
        (dict(count=0), "count must be a whole number of at least 1, got 0"),
        (dict(batch_size=0), "batch_size must be a whole number of at least 1, got 0"),
        (dict(solver="rk4"), "solver must be one of"),
        (
            dict(dataset=TensorDataset(real_images(20), torch.zeros(20).long())),
            "labels are given to a model without classes",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            tune(model, **(dict(dataset=real_images(20)) | options))
    with pytest.raises(ValueError, match="labels are missing"):
        tune(small_model(Known, num_classes=3), real_images(20))
    with pytest.raises(
        ValueError, match=r"images must be of shape \(b 1 8 8\), got \(20, 1, 8, 4\)"
    ):
        tune(model, real_images(20)[..., :4])
    assert model.calls == []
    assert model.generation == GenerationSettings()


def test_tuning_leaves_the_weights_alone():
    model = stir(small_model(), 0.05)
    before = copy.deepcopy(dict(model.named_parameters()))
    axes = dict(temperature=(0.9, 1.0), num_steps=(2,))
    one, other = (
        tune(model, real_images(20), count=10, axes=axes, precision="bf16") for _ in range(2)
    )
    assert one == other
    assert replace(one.settings) in (
        GenerationSettings(temperature=t, num_steps=n) for t in (0.9, 1.0) for n in (2, 8)
    )
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())
