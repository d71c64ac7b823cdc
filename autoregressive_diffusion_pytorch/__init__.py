"""Autoregression over continuous tokens: a causal transformer and a diffusion or flow head, no vector quantisation."""

from importlib import import_module

from autoregressive_diffusion_pytorch.autoregressive import AutoregressiveDiffusion, AutoregressiveFlow
from autoregressive_diffusion_pytorch.denoiser import MLP
from autoregressive_diffusion_pytorch.heads import ElucidatedDiffusion, RectifiedFlow
from autoregressive_diffusion_pytorch.image import ImageAutoregressiveDiffusion, ImageAutoregressiveFlow

# loaded when first asked for: a model needs neither torchvision nor accelerate
_LAZY = {"ImageDataset": "image_dataset", "ImageTrainer": "image_trainer"}

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
    if name in _LAZY:
        return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
