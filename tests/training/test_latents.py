"""Trainings of models with an autoencoder, on images and on latents."""

import pytest
import torch
from safetensors.torch import load_file
from small_trainings import SIZES, names

from autoregressive_diffusion_pytorch import ImageAutoregressiveFlow, ImageTrainer


class FewLatents(torch.utils.data.Dataset):
    """Labelled latents, in the form of a `LatentDataset`."""

    classes = ("a", "b")

    def __len__(self):
        return 8

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        latents = 3 + 2 * torch.randn(4, 2, 2, generator=generator)
        return dict(latents=latents, labels=torch.tensor(index % 2))


def trainer_in(folder, autoencoder, dataset, **kwargs):
    torch.manual_seed(0)
    sizes = dict(image_size=4, patch_size=1, model=SIZES)
    return ImageTrainer(
        ImageAutoregressiveFlow(autoencoder=str(autoencoder), **sizes, **kwargs),
        dataset=dataset,
        validation_dataset=dataset,
        num_train_steps=2,
        batch_size=4,
        num_samples=2,
        sample_kwargs=dict(num_steps=1),
        checkpoints_folder=folder / "checkpoints",
        results_folder=folder / "results",
        logs_folder=folder / "logs",
        accelerate_kwargs=dict(cpu=True),
    )


@pytest.mark.parametrize("kind", ["images", "latents"])
def test_the_autoencoder_is_in_no_checkpoint_and_grids_are_decoded(kind, autoencoder, tmp_path):
    of_images = dict(dataset=torch.rand(8, 3, 4, 4))
    of_latents = dict(dataset=FewLatents(), num_classes=2)
    options = of_images if kind == "images" else of_latents
    trainer = trainer_in(tmp_path, autoencoder, **options)
    trainer()
    assert names(tmp_path / "results") == ["results.2.png"]
    checkpoint = tmp_path / "checkpoints" / "checkpoint.2"
    weights = load_file(checkpoint / "model.safetensors")
    assert not any(name.startswith(("tokenizer", "autoencoder")) for name in weights)
    assert weights["model.normalization.mean"].isfinite().all()
    if kind == "latents":
        assert (weights["model.normalization.mean"] - 3).abs().max() < 1.5
    loaded = ImageAutoregressiveFlow.from_pretrained(checkpoint)
    labels = None if kind == "images" else [0]
    assert loaded.sample(1, labels=labels, num_steps=1).shape == (1, 3, 4, 4)


def test_latents_need_a_model_with_an_autoencoder(tmp_path):
    model = ImageAutoregressiveFlow(image_size=4, patch_size=2, num_classes=2, model=SIZES)
    with pytest.raises(TypeError, match="latents are of models with an autoencoder"):
        ImageTrainer(
            model, dataset=FewLatents(), num_train_steps=1, checkpoints_folder=tmp_path / "c"
        )
