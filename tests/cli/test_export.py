import pytest
import torch
from command_line import TINY, failed, succeeded
from huggingface_hub import ModelCard

from autoregressive_diffusion_pytorch import ImageAutoregressiveFlow
from autoregressive_diffusion_pytorch.utils.manifests import best_checkpoint


@pytest.mark.parametrize("labels", [(), ("--labels",)])
def test_exports_a_model_with_its_card(call, tmp_path, labels):
    succeeded(call("train", *TINY, *labels, "--hold-out", 0.01, "--checkpoint-every", 1))
    result = succeeded(call("export", "runs/digits", "out/model"))
    assert result.stdout == "out/model\n"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"model"}
    files = {path.name for path in (tmp_path / "out/model").iterdir()}
    assert files == {
        "README.md",
        "config.json",
        "generation.json",
        "model.safetensors",
        "samples.png",
    }
    card = ModelCard.load("out/model/README.md")
    assert card.data.library_name == "autoregressive-diffusion-pytorch"
    assert "![samples](samples.png)" in card.text
    for fact in (
        "| images | digits |",
        "| steps | ",
        "| validation loss | ",
        "on 1.0% of the images",
        "ImageAutoregressiveFlow",
    ):
        assert fact in card.text, fact
    assert ("| labels | 0, 1, 2" in card.text) == bool(labels)
    best = best_checkpoint("runs/digits/checkpoints")
    model, expected = (
        ImageAutoregressiveFlow.from_pretrained(folder) for folder in ("out/model", best)
    )
    for name, value in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)
    assert "is not empty: name another one" in failed(call("export", "runs/digits", "out/model"))
    (tmp_path / "empty").mkdir()
    succeeded(call("export", "runs/digits", "empty", "--checkpoint", 1))
