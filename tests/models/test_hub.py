import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import stir
from huggingface_hub import HfApi, ModelCard
from PIL import Image

from autoregressive_diffusion_pytorch import (
    AutoregressiveDiffusion,
    AutoregressiveFlow,
    ImageAutoregressiveDiffusion,
    ImageAutoregressiveFlow,
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
