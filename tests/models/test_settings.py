import copy
import json
from functools import partial
from math import inf, nan

import pytest
import torch
from helpers import stir
from huggingface_hub import hub_mixin
from huggingface_hub.errors import EntryNotFoundError
from safetensors.torch import save_file

from autoregressive_diffusion_pytorch import (
    AutoregressiveDiffusion,
    AutoregressiveFlow,
    ImageAutoregressiveDiffusion,
    ImageAutoregressiveFlow,
)
from autoregressive_diffusion_pytorch.models import hub
from autoregressive_diffusion_pytorch.models.settings import GenerationSettings, GuidanceSchedule

SIZES = dict(dim=16, depth=1, heads=2, dim_head=8, mlp_depth=1, mlp_width=16)
models = pytest.mark.parametrize("model_class", [AutoregressiveDiffusion, AutoregressiveFlow])
image_models = pytest.mark.parametrize(
    "model_class", [ImageAutoregressiveDiffusion, ImageAutoregressiveFlow]
)
ALL = dict(
    num_steps=3,
    solver="heun",
    temperature=0.8,
    guidance_scale=2.0,
    guidance_schedule="linear",
    guidance_interval=(0.1, 5.0),
    context_guidance=1.5,
)


def small_model(model_class=AutoregressiveFlow, **kwargs):
    sizes = dict(max_seq_len=4, dim_input=3, num_classes=3, context_drop_prob=0.1)
    return stir(model_class(**SIZES, **(sizes | kwargs)))


def small_image_model(model_class=ImageAutoregressiveFlow):
    return stir(model_class(image_size=4, patch_size=2, channels=1, num_classes=3, model=SIZES))


def sample(model, **kwargs):
    return model.sample(2, labels=1, generator=torch.Generator().manual_seed(0), **kwargs)


def test_the_defaults_are_what_was_learned():
    assert GenerationSettings().given() == {}
    assert GenerationSettings(**ALL).given() == ALL
    assert small_model().generation == small_image_model().generation == GenerationSettings()


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (dict(num_steps=0), ValueError, "num_steps must be a whole number of at least 1, got 0"),
        (
            dict(num_steps=2.0),
            ValueError,
            "num_steps must be a whole number of at least 1, got 2.0",
        ),
        (dict(temperature=-1), ValueError, "temperature must be a number of at least 0, got -1"),
        (dict(temperature=inf), ValueError, "temperature must be a number of at least 0, got inf"),
        (dict(temperature=nan), ValueError, "temperature must be a number of at least 0, got nan"),
        (
            dict(temperature=True),
            ValueError,
            "temperature must be a number of at least 0, got True",
        ),
        (dict(temperature="1"), ValueError, "temperature must be a number of at least 0, got '1'"),
        (
            dict(guidance_scale=-1.0),
            ValueError,
            "guidance_scale must be a number of at least 0, got -1.0",
        ),
        (
            dict(guidance_scale=[1.0, 2.0]),
            ValueError,
            "guidance_scale must be a number of at least 0",
        ),
        (
            dict(guidance_schedule="cosine"),
            ValueError,
            "guidance_schedule must be one of 'constant', 'linear', got 'cosine'",
        ),
        (dict(guidance_interval=(2, 1)), ValueError, "guidance_interval must be two noise levels"),
        (
            dict(context_guidance=-1.0),
            ValueError,
            "context_guidance must be at least 0 and finite, got -1.0",
        ),
        (dict(context_guidance="2"), TypeError, "context_guidance must be one number, got '2'"),
    ],
)
def test_bad_settings(settings, error, message):
    with pytest.raises(error, match=message):
        GenerationSettings(**settings)


@pytest.mark.parametrize(
    "settings", [{}, ALL, dict(guidance_interval=(0.5, inf)), dict(temperature=0)]
)
def test_saved_settings_come_back(tmp_path, settings):
    assert GenerationSettings.load(tmp_path) == GenerationSettings()
    file = GenerationSettings(**settings).save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["generation.json"]
    assert json.loads(file.read_text()).keys() == settings.keys()
    assert GenerationSettings.load(tmp_path) == GenerationSettings(**settings)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"steps": 3}', "a generation setting must be one of 'num_steps', .*, got 'steps'"),
        ('{"num_steps": 0}', "num_steps must be a whole number of at least 1, got 0"),
        ('{"context_guidance": "2"}', "context_guidance must be one number"),
        ("[1]", "settings by name are expected, got "),
        ('{"num_steps": 3', ""),
        ("", ""),
    ],
)
def test_a_file_of_something_else_is_named(tmp_path, text, message):
    (tmp_path / "generation.json").write_text(text)
    with pytest.raises(
        ValueError, match=rf"generation.json holds no generation settings: {message}"
    ):
        GenerationSettings.load(tmp_path)
    small_model().save_pretrained(tmp_path / "model")
    (tmp_path / "generation.json").rename(tmp_path / "model" / "generation.json")
    with pytest.raises(ValueError, match=r"model/generation.json holds no generation settings"):
        AutoregressiveFlow.from_pretrained(tmp_path / "model")


@models
@pytest.mark.parametrize("name", [name for name in ALL if not name.startswith("guidance")])
def test_a_model_draws_by_its_settings(model_class, name):
    model = small_model(model_class)
    learned, asked = sample(model), sample(model, **{name: ALL[name]})
    assert not torch.equal(learned, asked)
    model.generation = GenerationSettings(**{name: ALL[name]})
    assert torch.equal(sample(model), asked)


@models
def test_a_model_draws_by_all_its_settings_and_arguments_win(model_class):
    model = small_model(model_class)
    learned, asked = sample(model, num_steps=5, solver="dpmpp_2m"), sample(model, **ALL)
    others = {
        name: sample(model, **ALL | {name: value})
        for name, value in dict(guidance_scale=1.0, temperature=0.0).items()
    }
    model.generation = GenerationSettings(**ALL)
    assert torch.equal(sample(model), asked)
    *_, last = model.stream(2, labels=1, generator=torch.Generator().manual_seed(0))
    assert torch.equal(last, asked[:, -1])
    assert torch.equal(sample(model, guidance_scale=1.0), others["guidance_scale"])
    assert torch.equal(sample(model, temperature=0.0), others["temperature"])
    defaults = dict(
        guidance_scale=1.0, guidance_schedule="constant", temperature=1.0, context_guidance=1.0
    )
    assert torch.equal(sample(model, num_steps=5, solver="dpmpp_2m", **defaults), learned)


@models
def test_another_solver_takes_its_own_steps(model_class, monkeypatch):
    model = small_model(model_class)
    model.generation = GenerationSettings(solver="heun", num_steps=3)
    taken, steps_and_solver = [], model.head.steps_and_solver

    def record(*args):
        taken.append(steps_and_solver(*args))
        return taken[-1]

    monkeypatch.setattr(model.head, "steps_and_solver", record)
    for kwargs in (
        {},
        dict(solver="heun"),
        dict(solver="euler"),
        dict(solver="euler", num_steps=2),
        dict(num_steps=2),
    ):
        model.stream(2, labels=1, **kwargs)
    assert taken == [
        (3, "heun"),
        (3, "heun"),
        (model.head.NUM_SAMPLE_STEPS["euler"], "euler"),
        (2, "euler"),
        (2, "heun"),
    ]
    # steps of the head's own solver
    model.generation = GenerationSettings(num_steps=3)

    def own_and_given(**given):
        options = model.generation.with_given(given, model.head)
        return options.get("num_steps"), options.get("solver")

    assert own_and_given() == (3, None)
    assert own_and_given(solver="euler") == (None, "euler")


@models
def test_settings_that_a_model_has_not_learned_are_refused(model_class):
    model = small_model(model_class, context_drop_prob=0.0)
    model.generation = GenerationSettings(context_guidance=1.5)
    with pytest.raises(
        ValueError, match="context_guidance other than 1 needs a model that is trained with"
    ):
        sample(model)
    sample(model, context_guidance=1.0)


@models
def test_settings_travel_with_a_sequence_model(model_class, tmp_path):
    model = small_model(model_class)
    model.generation = GenerationSettings(**ALL)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "generation.json").read_text()) == ALL | dict(
        guidance_interval=[0.1, 5.0]
    )
    assert (
        not {"temperature", "context_guidance"}
        & json.loads((tmp_path / "config.json").read_text()).keys()
    )
    loaded = model_class.from_pretrained(tmp_path)
    assert loaded.generation == model.generation
    assert torch.equal(sample(loaded), sample(model))
    assert model_class.generation == GenerationSettings()
    (tmp_path / "generation.json").unlink()
    assert model_class.from_pretrained(tmp_path).generation == GenerationSettings()


@image_models
def test_settings_travel_with_an_image_model_and_reach_its_sequence_model(model_class, tmp_path):
    model = small_image_model(model_class)
    asked = sample(model, **ALL)
    model.generation = GenerationSettings(**ALL)
    assert model.model.generation is model.generation
    assert torch.equal(sample(model), asked)
    model.save_pretrained(tmp_path)
    loaded = model_class.from_pretrained(tmp_path)
    assert loaded.generation == loaded.model.generation == GenerationSettings(**ALL)
    assert torch.equal(sample(loaded), asked)
    image = torch.rand(1, 1, 4, 4)
    completions = [
        model.complete(image, 2, labels=1, generator=torch.Generator().manual_seed(0), **kwargs)
        for kwargs in ({}, ALL)
    ]
    assert torch.equal(*completions)


@pytest.mark.parametrize("settings", [{}, ALL, None])
def test_settings_come_from_the_hub(tmp_path, monkeypatch, settings):
    model = small_model()
    model.generation = GenerationSettings(**(settings or {}))
    model.save_pretrained(tmp_path)
    if settings is None:  # a model of before there were such files
        (tmp_path / "generation.json").unlink()

    def download(repo_id, filename, **kwargs):
        if not (tmp_path / filename).exists():
            raise EntryNotFoundError(filename)
        return str(tmp_path / filename)

    monkeypatch.setattr(
        hub_mixin,
        "hf_hub_download",
        lambda *, repo_id, filename, **kwargs: download(repo_id, filename),
    )
    monkeypatch.setattr(hub, "hf_hub_download", download)
    assert AutoregressiveFlow.from_pretrained("someone/tokens").generation == model.generation


@pytest.mark.parametrize("make", [small_model, small_image_model])
def test_bf16_draws_as_a_copy_of_rounded_weights_does(make):
    model = make()
    weights = {name: value.clone() for name, value in model.named_parameters()}
    rounded = copy.deepcopy(model).bfloat16()
    drawn, expected = (
        sample(model, precision="bf16", temperature=0.9),
        sample(rounded, temperature=0.9),
    )
    assert torch.equal(drawn, expected)
    assert drawn.dtype == torch.float32
    assert not torch.equal(drawn, sample(model, temperature=0.9))
    assert all(torch.equal(value, weights[name]) for name, value in model.named_parameters())
    assert all(value.dtype == torch.float32 for value in model.parameters())
    *_, last = model.stream(
        2, labels=1, precision="bf16", temperature=0.9, generator=torch.Generator().manual_seed(0)
    )
    assert torch.equal(last, drawn if isinstance(model, ImageAutoregressiveFlow) else drawn[:, -1])


def test_an_unknown_option_is_told_with_the_nearest_known_one():
    model, image_model = small_model(), small_image_model()
    complete = partial(image_model.complete, torch.rand(1, 1, 4, 4), 2)
    for draw in (model.sample, model.stream, image_model.sample, image_model.stream, complete):
        hint = r"got an unexpected argument 'guidance': did you mean 'guidance_scale'\?"
        with pytest.raises(TypeError, match=hint):
            draw(guidance=2)


def test_other_precisions():
    model = small_model()
    assert torch.equal(sample(model, precision="no"), sample(model))
    rounded = copy.deepcopy(model).bfloat16()
    assert torch.equal(sample(rounded, precision="no"), sample(rounded))  # as the weights are
    assert torch.equal(sample(rounded, precision="bf16"), sample(rounded))
    assert sample(copy.deepcopy(model).double(), precision="no").dtype == torch.float64
    for draw in (
        model.sample,
        model.stream,
        small_image_model().sample,
        small_image_model().stream,
    ):
        with pytest.raises(
            ValueError, match=r"precision must be one of .*'no', 'bf16', 'int8', got 'fp16'"
        ):
            draw(labels=1, precision="fp16")


def test_an_image_model_completes_in_bf16():
    model, image = small_image_model(), torch.rand(1, 1, 4, 4)
    rounded = copy.deepcopy(model).bfloat16()
    drawn = model.complete(
        image, 2, labels=1, precision="bf16", generator=torch.Generator().manual_seed(0)
    )
    assert torch.equal(
        drawn, rounded.complete(image, 2, labels=1, generator=torch.Generator().manual_seed(0))
    )


SAVED_BY_1_0 = dict(
    ImageAutoregressiveFlow=dict(
        flow_kwargs=dict(
            solver="dpmpp_2m",
            model_output_clean=True,
            sigma_data=0.5,
            time_distribution="logit_normal",
            logit_mean=0.0,
            logit_std=1.0,
        )
    ),
    ImageAutoregressiveDiffusion=dict(
        diffusion_kwargs=dict(
            solver="dpmpp_2m",
            sigma_min=0.002,
            sigma_max=80.0,
            sigma_data=0.5,
            rho=7.0,
            P_mean=-0.4,
            P_std=1.2,
            S_churn=0.0,
            S_tmin=0.05,
            S_tmax=50.0,
            S_noise=1.003,
        )
    ),
)


@image_models
@pytest.mark.parametrize("solver", ["dpmpp_2m", "midpoint"])
def test_a_model_saved_by_version_1_0_0(model_class, solver, tmp_path):
    model = small_image_model(model_class)
    name = model.model.head_argument()
    model.save_pretrained(tmp_path)
    (tmp_path / "generation.json").unlink()
    config = json.loads((tmp_path / "config.json").read_text())
    steps = dict(dpmpp_2m=3, euler=32, euler_maruyama=32, heun=16, midpoint=16)
    sampling = dict(
        num_sample_steps=steps, solver=solver, clamp_during_sampling="guided", num_noise_draws=4
    )
    config["model"] |= dict(context_guidance=1.2) | {
        name: SAVED_BY_1_0[model_class.__name__][name] | sampling
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    weights = {
        key: value for key, value in model.state_dict().items() if not key.endswith("sigma_data")
    }
    assert len(weights) == len(model.state_dict()) - 1
    save_file(weights, tmp_path / "model.safetensors")

    loaded = model_class.from_pretrained(tmp_path)
    head = loaded.model.head
    expected = dict(
        solver="dpmpp_2m",
        num_sample_steps=None,
        clamp_during_sampling=True,
        sigma_data=0.5,
        num_noise_draws=4,
    )
    assert expected.items() <= head.config.items()
    assert "context_guidance" not in loaded.config["model"]
    assert loaded.generation == GenerationSettings()
    assert loaded.model.context_drop_prob == 0.1
    assert torch.equal(sample(loaded), sample(model))
    # it is that of all its training, whatever it is trained on from here
    head.measure(torch.randn(100))
    assert head.sigma_data == 0.5
    # and is saved as a model of today
    loaded.save_pretrained(tmp_path / "again")
    assert model_class.from_pretrained(tmp_path / "again").config == loaded.config


@image_models
def test_weights_of_version_1_0_0_go_into_a_model_of_today(model_class):
    model, other = small_image_model(model_class), small_image_model(model_class)
    weights = {
        key: value for key, value in model.state_dict().items() if not key.endswith("sigma_data")
    }
    other.load_state_dict(weights)
    other.measure(torch.rand(10, 1, 4, 4))
    assert other.model.head.sigma_data == 0.5
    assert torch.equal(sample(other), sample(model))


@image_models
def test_a_model_that_is_saved_untrained_measures_its_data_still(model_class, tmp_path):
    images = torch.rand(10, 1, 4, 4)
    model = small_image_model(model_class)
    model.save_pretrained(tmp_path / "untrained")
    loaded = model_class.from_pretrained(tmp_path / "untrained")
    loaded.measure(images)
    measured = loaded.model.head.sigma_data
    torch.testing.assert_close(measured, (2 * images - 1).std())
    # and once only
    loaded.save_pretrained(tmp_path / "measured")
    again = model_class.from_pretrained(tmp_path / "measured")
    again.measure(images[:2])
    assert again.model.head.sigma_data == measured
    assert again.config == loaded.config


def test_guidance_scales():
    assert GuidanceSchedule(3.0).scales(4).tolist() == [3, 3, 3, 3]
    assert GuidanceSchedule(3.0, "linear").scales(4).tolist() == [1.5, 2, 2.5, 3]
    assert GuidanceSchedule([1, 3], "linear").scales(2).tolist() == [[1, 2], [1, 3]]
    assert GuidanceSchedule(torch.tensor([1, 2])).scales(2).tolist() == [[1, 2], [1, 2]]


def test_one_branch_is_enough_at_scales_0_and_1():
    assert GuidanceSchedule().is_conditional
    assert GuidanceSchedule([1.0, 1.0], "linear", (0.1, 1)).is_conditional
    assert GuidanceSchedule(0).is_unconditional
    for arguments in ((2,), ([0, 1],), (0, "linear"), (0, "constant", (0.1, inf))):
        guidance = GuidanceSchedule(*arguments)
        assert not guidance.is_conditional
        assert not guidance.is_unconditional


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1.0,), "guidance_scale must be at least 0 and finite, got -1.0"),
        ((nan,), "guidance_scale must be at least 0 and finite, got nan"),
        ((inf,), "guidance_scale must be at least 0 and finite, got inf"),
        (([[1.0]],), r"guidance_scale must be a number or of shape \(b,\), got \(1, 1\)"),
        (
            (2.0, "constant", 3.0),
            "guidance_interval must be two noise levels 0 <= low < high, got 3.0",
        ),
        ((2.0, "cosine"), "guidance_schedule must be one of 'constant', 'linear', got 'cosine'"),
        (
            (2.0, "constant", (1.0, 0.5)),
            r"guidance_interval must be two noise levels 0 <= low < high, got \(1.0, 0.5\)",
        ),
        ((2.0, "constant", (1.0,)), "guidance_interval must be two noise levels"),
        ((2.0, "constant", (-1.0, 1.0)), "guidance_interval must be two noise levels"),
    ],
)
def test_bad_guidance(arguments, message):
    with pytest.raises(ValueError, match=message):
        GuidanceSchedule(*arguments)
