import json
import re
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from helpers import stir
from huggingface_hub import HfApi, ModelCard, hub_mixin
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError
from PIL import Image

from autoregressive_diffusion_pytorch import (
    Autoregressive,
    AutoregressiveDiffusion,
    AutoregressiveFlow,
    ElucidatedDiffusion,
    GenerationSettings,
    ImageAutoregressive,
    ImageAutoregressiveDiffusion,
    ImageAutoregressiveFlow,
    ImageMaskedAutoregressive,
    MaskedAutoregressive,
)

SMALL = dict(dim=16, depth=1, heads=2, dim_head=8, mlp_depth=1, mlp_width=16)
MODELS = [
    (
        AutoregressiveDiffusion,
        SMALL | dict(max_seq_len=(2, 2), dim_input=3, diffusion_kwargs=dict(sigma_data=1.0)),
    ),
    (
        AutoregressiveFlow,
        SMALL
        | dict(max_seq_len=4, model_output_clean=False, decoder_kwargs=dict(rotary_pos_emb=True)),
    ),
    (ImageAutoregressiveDiffusion, dict(image_size=(4, 8), patch_size=4, channels=1, model=SMALL)),
    (
        ImageAutoregressiveFlow,
        dict(image_size=8, patch_size=4, model=SMALL | dict(flow_kwargs=dict(num_sample_steps=3))),
    ),
    (
        AutoregressiveFlow,
        SMALL | dict(max_seq_len=4, flow_kwargs=dict(solver="euler", num_sample_steps=2)),
    ),
    (AutoregressiveFlow, SMALL | dict(max_seq_len=4, order="random", anneal_to_raster=(0.5, 1))),
    (MaskedAutoregressive, SMALL | dict(max_seq_len=4, head="energy", min_mask_ratio=0.5)),
    (ImageMaskedAutoregressive, dict(image_size=8, patch_size=4, model=dict(SMALL, head="flow"))),
]


@pytest.mark.parametrize(("model_class", "kwargs"), MODELS)
def test_a_saved_model_comes_back(model_class, kwargs, tmp_path, capsys):
    model = stir(model_class(**kwargs))
    model.save_pretrained(tmp_path)
    assert {"config.json", "generation.json", "model.safetensors"} <= {
        path.name for path in tmp_path.iterdir()
    }

    loaded = model_class.from_pretrained(tmp_path)
    assert capsys.readouterr().out == ""
    assert loaded.config == model.config
    assert loaded.config == json.loads((tmp_path / "config.json").read_text())
    first, second = (
        m.sample(2, generator=torch.Generator().manual_seed(0)) for m in (model, loaded)
    )
    assert torch.equal(first, second)


def test_the_configuration_holds_the_defaults():
    # a later version may have others
    config = AutoregressiveDiffusion(
        16, max_seq_len=4, depth=1, diffusion_kwargs=dict(sigma_data=1.0)
    ).config
    assert config["dim"] == 16
    assert config["heads"] == 8
    assert config["diffusion_kwargs"]["sigma_data"] == 1.0
    assert config["diffusion_kwargs"]["sigma_max"] == 80.0
    config = ImageAutoregressiveDiffusion(image_size=8, patch_size=4, model=SMALL).config
    assert config["channels"] == 3
    assert config["model"]["diffusion_kwargs"]["clamp_during_sampling"] is True
    assert not {"max_seq_len", "dim_input"} & config["model"].keys()


def test_missing_weights_are_an_error(tmp_path):
    model_class, kwargs = MODELS[0]
    model_class(**kwargs).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | dict(depth=2)))
    with pytest.raises(RuntimeError, match="Missing key"):
        model_class.from_pretrained(tmp_path)


def test_the_configuration_is_a_copy():
    decoder_kwargs = dict(rotary_pos_emb=True)
    model = AutoregressiveFlow(**SMALL, max_seq_len=4, decoder_kwargs=decoder_kwargs)
    decoder_kwargs["ff_glu"] = True
    assert model.config["decoder_kwargs"] == dict(rotary_pos_emb=True)


class Square(ImageAutoregressiveFlow):
    def __init__(self, size=16):
        super().__init__(model=SMALL, image_size=size, patch_size=4)


class Widened(ImageAutoregressiveFlow):
    def __init__(self, size=16, **model):
        super().__init__(model=SMALL | model, image_size=size, patch_size=4)


class Handing(ImageAutoregressiveDiffusion):
    def __init__(self, size, **kwargs):
        super().__init__(model=SMALL, image_size=size, patch_size=4, **kwargs)


class Named(ImageAutoregressiveFlow):
    def __init__(self, model="small"):
        super().__init__(model=dict(small=SMALL)[model], image_size=8, patch_size=4)


class Short(AutoregressiveFlow):
    def __init__(self, length, *args, **kwargs):
        sizes = {name: size for name, size in SMALL.items() if name != "dim"}
        super().__init__(*args, max_seq_len=length, **sizes | kwargs)


class WithHead(Autoregressive):
    def __init__(self, head):
        super().__init__(**SMALL, head=head, max_seq_len=4)


class Plain(AutoregressiveFlow):
    pass


OWN = [
    (lambda: Square(8), dict(size=8)),
    (lambda: Square(), dict(size=16)),
    (lambda: Widened(8, mlp_width=8), dict(size=8, mlp_width=8)),
    (lambda: Handing(8, channels=1), dict(size=8, channels=1)),
    (lambda: Named(), dict(model="small")),
    (lambda: Short(4, 16, depth=2), dict(length=4, dim=16, depth=2)),
    (lambda: WithHead(ElucidatedDiffusion), dict(head="diffusion")),
    (lambda: Plain(**SMALL, max_seq_len=4), None),
]


@pytest.mark.parametrize(("make", "config"), OWN)
def test_a_subclass_with_a_constructor_of_its_own_comes_back(make, config, tmp_path):
    model = stir(make())
    if config is not None:
        assert model.config == config
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert loaded.config == model.config
    samples = [m.sample(2, generator=torch.Generator().manual_seed(0)) for m in (model, loaded)]
    assert torch.equal(*samples)


def test_a_subclass_saved_by_version_1_0_0_comes_back(tmp_path):
    """It saved the arguments of the bases too."""
    model = Square(8)
    model.save_pretrained(tmp_path)
    base = ImageAutoregressiveFlow(image_size=8, patch_size=4, model=SMALL).config
    config = base | dict(size=8)
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert Square.from_pretrained(tmp_path).image_size == (8, 8)


IMAGES = dict(image_size=8, patch_size=4)
SAVED = [
    lambda: ImageAutoregressiveFlow(**IMAGES, model=SMALL),
    lambda: ImageAutoregressiveDiffusion(**IMAGES, model=SMALL),
    lambda: ImageAutoregressive(**IMAGES, model=SMALL | dict(head="flow")),
    lambda: AutoregressiveFlow(**SMALL, max_seq_len=4),
    lambda: AutoregressiveDiffusion(**SMALL, max_seq_len=4),
    lambda: Autoregressive(**SMALL, max_seq_len=4, head="diffusion"),
]


@pytest.mark.parametrize("make", SAVED)
def test_the_folder_of_another_class_says_which(make, tmp_path):
    model = make()
    model.save_pretrained(tmp_path)
    right = type(model)
    for other in [type(make()) for make in SAVED]:
        if other is right:
            assert type(right.from_pretrained(tmp_path)) is right
            continue
        hint = f"is no {other.__name__}: it is loaded by {right.__name__}.from_pretrained"
        with pytest.raises(ValueError, match=hint):
            other.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"is no Square: .* by {right.__name__}.from_pretrained"):
        Square.from_pretrained(tmp_path)


def test_the_folder_of_a_class_that_is_not_of_the_library_says_what_does_not_fit(tmp_path):
    Square(8).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no ImageAutoregressiveFlow: it has an argument 'size'"):
        ImageAutoregressiveFlow.from_pretrained(tmp_path)


def write_checkpoints(folder, losses):
    """Checkpoints by their validation losses; the width of a model says which one it is."""
    for step, loss in enumerate(losses, 1):
        checkpoint = folder / f"checkpoint.{step}"
        AutoregressiveFlow(**SMALL | dict(mlp_width=8 * step), max_seq_len=4).save_pretrained(
            checkpoint
        )
        manifest = dict(step=step, validation_loss=loss, files={})
        (checkpoint / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("losses", "best"),
    [
        ([2.0, 1.0, 3.0], 2),
        ([None, None, None], 3),
        ([None, 5.0, None], 2),
        ([1.0, float("nan")], 1),
    ],
)
def test_a_run_s_folder_gives_its_best_checkpoint(losses, best, tmp_path):
    write_checkpoints(tmp_path / "checkpoints", losses)
    (tmp_path / "checkpoints" / "checkpoint.9.partial").mkdir()
    (tmp_path / "config.json").write_text(json.dumps(dict(source="digits", head="flow")))
    for folder in (tmp_path, tmp_path / "checkpoints", str(tmp_path)):
        loaded = AutoregressiveFlow.from_pretrained(folder)
        assert loaded.config["mlp_width"] == 8 * best
        assert loaded.generation == GenerationSettings()
    GenerationSettings(num_steps=3).save(tmp_path)  # as `ardiff tune` does
    assert AutoregressiveFlow.from_pretrained(tmp_path).generation.num_steps == 3


def test_a_damaged_checkpoint_of_a_run_is_passed_over(tmp_path):
    write_checkpoints(tmp_path / "checkpoints", [1.0, 2.0, 0.5, 0.1])
    (tmp_path / "checkpoints/checkpoint.4/manifest.json").write_text("{")
    manifest = tmp_path / "checkpoints/checkpoint.3/manifest.json"
    files = dict(lost=dict(bytes=1, sha256=""))
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | dict(files=files)))
    with pytest.warns(UserWarning, match=r"checkpoint is passed over: .*checkpoint\.3/lost"):
        loaded = AutoregressiveFlow.from_pretrained(tmp_path)
    assert loaded.config["mlp_width"] == 8


def test_where_no_model_is_a_sentence_says_so(tmp_path, monkeypatch):
    load = AutoregressiveFlow.from_pretrained

    def refused(kind, match, place=tmp_path):
        with pytest.raises(kind, match=match) as found:
            load(place)
        assert "\n" not in str(found.value)

    refused(FileNotFoundError, r"holds no model \(config.json and model.safeten")
    (tmp_path / "config.json").write_text(json.dumps(dict(source="digits")))  # a run at its start
    (tmp_path / "checkpoints").mkdir()
    refused(FileNotFoundError, "holds no model .* and no checkpoint of a training")
    refused(NotADirectoryError, "is a file: expected the folder", tmp_path / "config.json")
    for place in (tmp_path / "none", f"{tmp_path}/none", "./none", "no such folder"):
        refused(FileNotFoundError, "the folder .* does not exist", place)
    model = AutoregressiveFlow(**SMALL, max_seq_len=4)
    model.save_pretrained(tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    for text in ("{", "[1]"):
        config.write_text(text)
        refused(ValueError, "config.json is damaged: ", tmp_path / "model")
    config.unlink()
    refused(FileNotFoundError, "holds weights, but no config.json", tmp_path / "model")
    config.write_text(json.dumps(model.config))
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    refused(ValueError, "model.safetensors of .* is damaged: ", tmp_path / "model")


@pytest.mark.parametrize("error", [LocalEntryNotFoundError("no connection"), None])
def test_a_name_that_the_hub_does_not_give(error, monkeypatch):
    def download(*args, **kwargs):
        if error is None:
            raise RepositoryNotFoundError("404", response=Mock(headers={}))
        raise error

    monkeypatch.setattr(hub_mixin, "hf_hub_download", download)
    with pytest.raises(FileNotFoundError, match="runs/flowers is no folder here, and "):
        AutoregressiveFlow.from_pretrained("runs/flowers")


def test_a_head_that_does_not_keep_its_arguments_is_named():
    class Forgetful(ElucidatedDiffusion):
        def __init__(self, *args, strength=1.0, **kwargs):
            super().__init__(*args, **kwargs)

    model = Autoregressive(**SMALL, max_seq_len=4, head=Forgetful)
    with pytest.raises(ValueError, match="Forgetful must keep strength as an attribute"):
        model.config  # noqa: B018


def test_an_argument_that_is_no_json_value_is_named_on_saving(tmp_path):
    decoder_kwargs = dict(layer_dropout=np.float32(0.1))
    model = AutoregressiveFlow(**SMALL, max_seq_len=4, decoder_kwargs=decoder_kwargs)
    with pytest.raises(
        ValueError,
        match="AutoregressiveFlow cannot be saved, its argument decoder_kwargs is no JSON value",
    ):
        model.save_pretrained(tmp_path)


def test_a_card_shows_title_training_and_grid(tmp_path):
    model = AutoregressiveFlow(**SMALL, max_seq_len=4)
    Image.new("L", (3, 3)).save(tmp_path / "grid.png")
    card = dict(
        title="Four tokens",
        grid=tmp_path / "grid.png",
        training={"images": "flowers", "steps": "1,000"},
    )
    model.save_pretrained(tmp_path / "told", model_card_kwargs=card)
    assert Image.open(tmp_path / "told" / "samples.png").size == (3, 3)
    told = ModelCard.load(tmp_path / "told" / "README.md")
    assert told.text.strip().startswith("# Four tokens")
    for part in (
        "![samples](samples.png)",
        "| images | flowers |\n| steps | 1,000 |",
        '"max_seq_len": 4',
    ):
        assert part in told.text
    assert f"{sum(p.numel() for p in model.parameters()):,} parameters" in told.text
    model.save_pretrained(tmp_path / "plain")
    plain = ModelCard.load(tmp_path / "plain" / "README.md")
    assert plain.text.strip().startswith("# AutoregressiveFlow")
    assert "## Training" not in plain.text
    assert "![" not in plain.text
    (snippet,) = re.findall(r"```python\n(.*?)```", plain.text, flags=re.DOTALL)
    exec(snippet.replace("path or name of this folder", str(tmp_path / "plain")), {})


def test_pushes_to_the_hub_what_it_saves(monkeypatch, tmp_path):
    uploads = {}

    def upload_folder(api, *, repo_id, folder_path, **kwargs):
        uploads[repo_id] = sorted(path.name for path in folder_path.iterdir())

    monkeypatch.setattr(
        HfApi, "create_repo", lambda api, repo_id, **kwargs: SimpleNamespace(repo_id=repo_id)
    )
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    model = AutoregressiveFlow(**SMALL, max_seq_len=4)
    model.push_to_hub("someone/tokens")
    assert uploads == {
        "someone/tokens": ["README.md", "config.json", "generation.json", "model.safetensors"]
    }
    Image.new("L", (3, 3)).save(tmp_path / "grid.png")
    model.push_to_hub("someone/tokens", model_card_kwargs=dict(grid=tmp_path / "grid.png"))
    assert uploads == {
        "someone/tokens": [
            "README.md",
            "config.json",
            "generation.json",
            "model.safetensors",
            "samples.png",
        ]
    }
