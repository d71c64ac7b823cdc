"""Models with one head: the names that most users know."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .autoregressive import Autoregressive
from .hub import OtherClassError
from .image import ImageAutoregressive
from .masked import MaskedAutoregressive

if TYPE_CHECKING:
    from pathlib import Path

    from ..heads.head import Head
    from .sequence_model import SequenceModel


class AutoregressiveDiffusion(Autoregressive):
    """`Autoregressive` with the head "diffusion", whose arguments are `diffusion_kwargs`."""

    preset = "diffusion"
    preset_arguments = ("head", "head_kwargs")

    def __init__(self, dim: int, *, diffusion_kwargs: dict | None = None, **kwargs):
        super().__init__(dim, head="diffusion", head_kwargs=diffusion_kwargs, **kwargs)


class AutoregressiveFlow(Autoregressive):
    """`Autoregressive` with the head "flow", whose arguments are `flow_kwargs`."""

    preset = "flow"
    preset_arguments = ("head", "head_kwargs")

    def __init__(
        self,
        dim: int,
        *,
        flow_kwargs: dict | None = None,
        model_output_clean: bool = True,
        **kwargs,
    ):
        flow_kwargs = dict(model_output_clean=model_output_clean) | (flow_kwargs or {})
        super().__init__(dim, head="flow", head_kwargs=flow_kwargs, **kwargs)


class AutoregressiveFlowMap(Autoregressive):
    """`Autoregressive` with the head "flow_map", whose arguments are `flow_map_kwargs`."""

    preset = "flow_map"
    preset_arguments = ("head", "head_kwargs")

    def __init__(self, dim: int, *, flow_map_kwargs: dict | None = None, **kwargs):
        super().__init__(dim, head="flow_map", head_kwargs=flow_map_kwargs, **kwargs)


class AutoregressiveEnergy(Autoregressive):
    """`Autoregressive` with the head "energy", whose arguments are `energy_kwargs`."""

    preset = "energy"
    preset_arguments = ("head", "head_kwargs")

    def __init__(self, dim: int, *, energy_kwargs: dict | None = None, **kwargs):
        super().__init__(dim, head="energy", head_kwargs=energy_kwargs, **kwargs)


class ImageAutoregressiveDiffusion(ImageAutoregressive):
    """Images by `AutoregressiveDiffusion`. Arguments as of `ImageAutoregressive`."""

    model_class = AutoregressiveDiffusion


class ImageAutoregressiveFlow(ImageAutoregressive):
    """Images by `AutoregressiveFlow`. Arguments as of `ImageAutoregressive`."""

    model_class = AutoregressiveFlow


class ImageAutoregressiveFlowMap(ImageAutoregressive):
    """Images by `AutoregressiveFlowMap`. Arguments as of `ImageAutoregressive`."""

    model_class = AutoregressiveFlowMap


class ImageAutoregressiveEnergy(ImageAutoregressive):
    """Images by `AutoregressiveEnergy`. Arguments as of `ImageAutoregressive`."""

    model_class = AutoregressiveEnergy


PRESETS = {cls.model_class.preset: cls for cls in ImageAutoregressive.__subclasses__()}


class ImageMaskedAutoregressive(ImageAutoregressive):
    """Images by `MaskedAutoregressive`. Arguments as of `ImageAutoregressive`."""

    model_class = MaskedAutoregressive


def image_model_class(head: str | type[Head], order: str = "raster") -> type[ImageAutoregressive]:
    """The class for images of a head, and of raster, random or masked order."""
    if order == "masked":
        return ImageMaskedAutoregressive
    return PRESETS.get(head, ImageAutoregressive)


def sequence_model_class(head: str | type[Head], order: str = "raster") -> type[SequenceModel]:
    """The same for sequences."""
    return image_model_class(head, order).model_class


def load_pretrained(name: str | Path) -> ImageAutoregressive | SequenceModel:
    """A saved model of any class of this library. Argument and errors as of `from_pretrained`."""
    try:
        return ImageAutoregressive.from_pretrained(name)
    except OtherClassError as error:
        if not error.classes:
            raise
        return error.classes[0].from_pretrained(name)
