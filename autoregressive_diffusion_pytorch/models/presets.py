"""Models with one head: the names that most users know."""

from __future__ import annotations

from .autoregressive import Autoregressive
from .image import ImageAutoregressive


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


class ImageAutoregressiveDiffusion(ImageAutoregressive):
    """Images by `AutoregressiveDiffusion`. Arguments as of `ImageAutoregressive`."""

    model_class = AutoregressiveDiffusion


class ImageAutoregressiveFlow(ImageAutoregressive):
    """Images by `AutoregressiveFlow`. Arguments as of `ImageAutoregressive`."""

    model_class = AutoregressiveFlow


PRESETS = {cls.model_class.preset: cls for cls in ImageAutoregressive.__subclasses__()}


def image_model_class(head: str) -> type[ImageAutoregressive]:
    """The class for images of a head: its preset, or the general one."""
    return PRESETS.get(head, ImageAutoregressive)
