"""Autoregression over continuous tokens: a causal transformer and a diffusion or flow head, no vector quantisation."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from autoregressive_diffusion_pytorch.autoregressive import AutoregressiveDiffusion, AutoregressiveFlow
    from autoregressive_diffusion_pytorch.denoiser import MLP
    from autoregressive_diffusion_pytorch.heads import ElucidatedDiffusion, RectifiedFlow
    from autoregressive_diffusion_pytorch.image import ImageAutoregressiveDiffusion, ImageAutoregressiveFlow
    from autoregressive_diffusion_pytorch.image_dataset import ImageDataset
    from autoregressive_diffusion_pytorch.image_trainer import ImageTrainer

# each is loaded when it is first asked for: a model needs neither torchvision nor accelerate, a help text not even torch
_ROOMS = {
    "MLP": "denoiser",
    "AutoregressiveDiffusion": "autoregressive",
    "AutoregressiveFlow": "autoregressive",
    "ElucidatedDiffusion": "heads",
    "ImageAutoregressiveDiffusion": "image",
    "ImageAutoregressiveFlow": "image",
    "ImageDataset": "image_dataset",
    "ImageTrainer": "image_trainer",
    "RectifiedFlow": "heads",
}

__all__ = [
    "MLP",
    "AutoregressiveDiffusion",
    "AutoregressiveFlow",
    "ElucidatedDiffusion",
    "ImageAutoregressiveDiffusion",
    "ImageAutoregressiveFlow",
    "ImageDataset",
    "ImageTrainer",
    "RectifiedFlow",
]


def __getattr__(name: str):
    if name in _ROOMS:
        return getattr(import_module(f"{__name__}.{_ROOMS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
