"""Autoregression over continuous tokens: a transformer and a head per token, no quantisation."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # for editors and type checkers
    from .data.image_folder import ImageDataset as ImageDataset
    from .data.latents import LatentDataset as LatentDataset
    from .heads.elucidated_diffusion import ElucidatedDiffusion as ElucidatedDiffusion
    from .heads.energy import EnergyScore as EnergyScore
    from .heads.flow_map import FlowMap as FlowMap
    from .heads.head import Head as Head
    from .heads.mlp import MLP as MLP
    from .heads.rectified_flow import RectifiedFlow as RectifiedFlow
    from .models.autoregressive import Autoregressive as Autoregressive
    from .models.finetuning import finetuned as finetuned
    from .models.image import ImageAutoregressive as ImageAutoregressive
    from .models.masked import MaskedAutoregressive as MaskedAutoregressive
    from .models.presets import AutoregressiveDiffusion as AutoregressiveDiffusion
    from .models.presets import AutoregressiveEnergy as AutoregressiveEnergy
    from .models.presets import AutoregressiveFlow as AutoregressiveFlow
    from .models.presets import AutoregressiveFlowMap as AutoregressiveFlowMap
    from .models.presets import ImageAutoregressiveDiffusion as ImageAutoregressiveDiffusion
    from .models.presets import ImageAutoregressiveEnergy as ImageAutoregressiveEnergy
    from .models.presets import ImageAutoregressiveFlow as ImageAutoregressiveFlow
    from .models.presets import ImageAutoregressiveFlowMap as ImageAutoregressiveFlowMap
    from .models.presets import ImageMaskedAutoregressive as ImageMaskedAutoregressive
    from .models.settings import GenerationSettings as GenerationSettings
    from .training.image_trainer import ImageTrainer as ImageTrainer
    from .training.sequence_trainer import SequenceTrainer as SequenceTrainer
    from .training.trainer import Trainer as Trainer

# a name is imported when it is first asked for: a model needs neither torchvision nor accelerate, a
# help text not even torch
_LAZY_EXPORTS = {
    "MLP": "heads.mlp",
    "Autoregressive": "models.autoregressive",
    "AutoregressiveDiffusion": "models.presets",
    "AutoregressiveEnergy": "models.presets",
    "AutoregressiveFlow": "models.presets",
    "AutoregressiveFlowMap": "models.presets",
    "ElucidatedDiffusion": "heads.elucidated_diffusion",
    "EnergyScore": "heads.energy",
    "FlowMap": "heads.flow_map",
    "GenerationSettings": "models.settings",
    "Head": "heads.head",
    "ImageAutoregressive": "models.image",
    "ImageAutoregressiveDiffusion": "models.presets",
    "ImageAutoregressiveEnergy": "models.presets",
    "ImageAutoregressiveFlow": "models.presets",
    "ImageAutoregressiveFlowMap": "models.presets",
    "ImageDataset": "data.image_folder",
    "ImageMaskedAutoregressive": "models.presets",
    "ImageTrainer": "training.image_trainer",
    "LatentDataset": "data.latents",
    "MaskedAutoregressive": "models.masked",
    "RectifiedFlow": "heads.rectified_flow",
    "SequenceTrainer": "training.sequence_trainer",
    "Trainer": "training.trainer",
    "finetuned": "models.finetuning",
}

__all__ = list(_LAZY_EXPORTS)


def __getattr__(name: str):
    if name in _LAZY_EXPORTS:
        return getattr(import_module(f"{__name__}.{_LAZY_EXPORTS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY_EXPORTS})
