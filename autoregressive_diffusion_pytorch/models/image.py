"""Models of images: a tokenizer and a sequence model."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Generator, Tensor
from torch.nn import Module

from ..heads.head import Head
from ..utils.validation import check_generator, check_positive_int, check_share
from .autoregressive import Autoregressive
from .generation import Generation
from .hub import Pretrained, without_sampling_of_1_0
from .orders import repeated
from .readings import write
from .regions import PixelRegion, fill_canvas, number_of_completed
from .sequence_model import SequenceModel
from .settings import GenerationSettings, with_sampling_options
from .tokenizers import Patches

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .settings import SamplingOptions

CONTEXT_DROP_PROB = 0.1  # of image models, by default
DERIVED_ARGUMENTS = ("dim_input", "max_seq_len")  # of the sequence model, from the tokenizer
SHARED_ARGUMENTS = ("num_classes", "dim_cond")  # of both models


class ImageAutoregressive(Module, Pretrained):
    """An autoregressive model over the patches of images, by default in raster order.

    Args:
        image_size, patch_size, channels: as of `Patches`, the tokenizer.
        train_max_noise: in [0, 1). In training, the transformer reads past tokens that are mixed
            with noise, whose fraction is drawn per image from U(0, train_max_noise): so it learns
            to go on from its own, imperfect tokens.
        num_classes: number of labels to condition on, none by default.
        dim_cond: width of vectors to condition on, none by default.
        model: arguments of the sequence model, `Autoregressive`, but for `dim_input` and
            `max_seq_len`, which follow from the sizes. By default its `context_drop_prob` is
            `CONTEXT_DROP_PROB`, so that `context_guidance` can be used; tokens are taken as they
            are, in [-1, 1]; and a head that can clamp drawn tokens to that range does.
    """

    model_class: type[SequenceModel] = Autoregressive  # of the sequence model
    _has_seen_images = False  # whose range was checked

    def __init__(
        self,
        *,
        image_size: int | tuple[int, int],
        patch_size: int | tuple[int, int],
        channels: int = 3,
        train_max_noise: float = 0.0,
        num_classes: int | None = None,
        dim_cond: int | None = None,
        model: dict,
    ):
        super().__init__()
        self.tokenizer = Patches(image_size, patch_size, channels)
        check_share(train_max_noise=train_max_noise)
        for name in DERIVED_ARGUMENTS:
            if name in model:
                raise ValueError(
                    f"model must not hold {name!r}: it follows from image_size, patch_size and "
                    "channels"
                )
        for name in SHARED_ARGUMENTS:
            if name in model:
                raise ValueError(
                    f"model must not hold {name!r}: it is an argument of the image model itself"
                )
        self.train_max_noise = train_max_noise
        self.num_classes = num_classes
        self.dim_cond = dim_cond
        self.model = self.model_class(
            **dict(context_drop_prob=CONTEXT_DROP_PROB, normalize=False) | model,
            dim_input=self.tokenizer.dim,
            max_seq_len=self.tokenizer.grid,
            num_classes=num_classes,
            dim_cond=dim_cond,
        )
        given = model.get(self.model_class.head_argument()) or {}
        if hasattr(self.head, "clamp_during_sampling") and "clamp_during_sampling" not in given:
            self.head.clamp_during_sampling = True

    @property
    def image_size(self) -> tuple[int, int]:
        return self.tokenizer.image_size

    @property
    def patch_size(self) -> tuple[int, int]:
        return self.tokenizer.patch_size

    @property
    def channels(self) -> int:
        return self.tokenizer.channels

    @property
    def head(self) -> Head:
        return self.model.head

    @property
    def generation(self) -> GenerationSettings:
        """Defaults of `sample`."""
        return self.model.generation

    @generation.setter
    def generation(self, settings: GenerationSettings) -> None:
        self.model.generation = settings

    def metrics(self) -> dict[str, Tensor]:
        """As of `Autoregressive`."""
        return self.head.metrics()

    def set_progress(self, share: float) -> None:
        """As of `Autoregressive`."""
        self.model.set_progress(share)

    def checkpoint_gradients(self) -> None:
        """As of `Autoregressive`."""
        self.model.checkpoint_gradients()

    def _resolved_arguments(self) -> dict[str, Any]:
        derived = (*DERIVED_ARGUMENTS, *SHARED_ARGUMENTS)
        config = self.model.config
        return dict(model={name: config[name] for name in config if name not in derived})

    @classmethod
    def _upgraded(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        if cls._has_own_constructor() or not isinstance(arguments.get("model"), dict):
            return arguments
        model = without_sampling_of_1_0(arguments["model"], cls.model_class.head_argument())
        # a saved model names all its arguments: without this one it was trained without it
        return arguments | dict(model=dict(context_drop_prob=0.0) | model)

    @classmethod
    def _misfit(cls, arguments: dict[str, Any]) -> str | None:
        if (misfit := super()._misfit(arguments)) or cls._has_own_constructor():
            return misfit
        derived = dict.fromkeys((*DERIVED_ARGUMENTS, *SHARED_ARGUMENTS))
        return cls.model_class._misfit(dict(arguments["model"]) | derived)

    def measure(self, images: Tensor, **_) -> None:
        """Lets the head measure the scale of tokens on images (b c h w) in [0, 1]."""
        self._check_images(images)
        self.model.measure(self.tokenizer.encode(images))

    def forward(
        self,
        images: Tensor,
        *,
        labels: Tensor | None = None,
        cond: Tensor | None = None,
        cond_mask: Tensor | None = None,
        loss_reduction: Literal["mean", "none"] = "mean",
    ) -> Tensor:
        """The loss of images (b c h w) with values in [0, 1].

        With `loss_reduction = "none"` one per patch, (b n). `labels`, `cond` and `cond_mask` as of
        `Autoregressive.forward`.
        """
        self._check_images(images)
        tokens = self.tokenizer.encode(images)
        noised = None
        if self.training and self.train_max_noise > 0:
            like = dict(device=tokens.device, dtype=tokens.dtype)
            share = self.train_max_noise * torch.rand(len(tokens), 1, 1, **like)
            noised = tokens.lerp(torch.randn_like(tokens), share)
        conditions = dict(labels=labels, cond=cond, cond_mask=cond_mask)
        options = dict(noised_seq=noised, loss_reduction=loss_reduction)
        return self.model(tokens, **conditions, **options)

    def _check_images(self, images: Tensor) -> None:
        """Whether these can be images, with the range of the first batch: to read it takes time."""
        self.tokenizer.check_images(images)
        if not (torch.compiler.is_compiling() or self._has_seen_images):
            self.tokenizer.check_range(images)
            self._has_seen_images = True

    def log_prob(
        self,
        images: Tensor,
        *,
        labels: Tensor | None = None,
        cond: Tensor | None = None,
        cond_mask: Tensor | None = None,
        generator: Generator | None = None,
        **solver_kwargs,
    ) -> Tensor:
        """The log-probability in nats of each patch of 8-bit images given those before it, (b n).

        By uniform dequantization: uniform noise moves each value within the interval that is
        rounded to it. The log-density there, plus the log of the interval, is on average over the
        noise a lower bound of the log-probability (Theis et al. 2016, eq. 4,
        https://arxiv.org/abs/1511.01844). Training sees the whole numbers themselves: a model that
        has learned that there is nothing between them finds what lies there improbable.

        Args:
            images: (b c h w) with values in [0, 1], which are rounded to multiples of 1 / 255.
            labels, cond, cond_mask: as of `forward`.
            generator: source of this noise and of that of the solver, on any device; by default
                torch's global one.
            solver_kwargs: as of the head's `log_prob`.

        Raises:
            TypeError: the head has no density.
        """
        self.tokenizer.check_images(images)
        if len(images) == 0:
            raise ValueError("images must be at least one, got none")
        self.tokenizer.check_range(images, strict=True)
        check_generator(generator)
        tokens = self.tokenizer.dequantize(images, generator)
        options = dict(labels=labels, cond=cond, cond_mask=cond_mask, generator=generator)
        log_densities = self.model.log_prob(tokens, **options, **solver_kwargs)
        return log_densities + tokens.shape[-1] * math.log(self.tokenizer.VALUE_INTERVAL)

    def bits_per_dim(self, images: Tensor, **kwargs) -> Tensor:
        """The bits per value of images (b c h w) of a code by the model, (b): less is better.

        8 are the images' own. On average over the noise an upper bound. Arguments as of `log_prob`.
        """
        return -self.log_prob(images, **kwargs).sum(dim=-1) / (images[0].numel() * math.log(2))

    @with_sampling_options
    def sample(
        self,
        batch_size: int | None = None,
        *,
        progress: bool = False,
        **options: Unpack[SamplingOptions],
    ) -> Tensor:
        """Draws images (b c h w) with values in [0, 1]. Arguments as of `Autoregressive.sample`."""
        return self.tokenizer.decode(self.model.sample(batch_size, progress=progress, **options))

    @with_sampling_options
    def stream(
        self, batch_size: int | None = None, **options: Unpack[SamplingOptions]
    ) -> Iterator[Tensor]:
        """The images of `sample`, (b c h w), after each iteration; grey where nothing is drawn yet.

        Arguments as of `sample`.
        """
        return self._growing(Generation(self.model, batch_size, options))

    def _growing(self, generation: Generation) -> Iterator[Tensor]:
        seq = None
        for positions, tokens in generation:
            if seq is None:
                shape = (len(tokens), self.model.max_seq_len, self.model.dim_input)
                seq = tokens.new_zeros(shape)
            write(seq, positions, tokens)
            yield self.tokenizer.decode(seq)

    @with_sampling_options
    def complete(
        self,
        images: Tensor,
        keep_rows: int,
        *,
        num_completions: int = 1,
        progress: bool = False,
        **options: Unpack[SamplingOptions],
    ) -> Tensor:
        """Draws anew what lies below the first rows of images.

        Args:
            images: (b c h w) with values in [0, 1]; one serves several labels or vectors.
            keep_rows: rows of pixels to keep, from 0 to the height, a multiple of the patch height.
                They come back untouched.
            num_completions: of each image with its label and vectors, one after the other; they
                share the work of reading it.
            progress: show a progress bar over the tokens.
            options: as of `sample`; `labels` and `cond` are one for all images or one for each.

        Returns:
            Images (b · num_completions, c h w).
        """
        self.tokenizer.check_images(images)
        check_positive_int(num_completions=num_completions)
        height, patch = self.image_size[0], self.patch_size[0]
        if type(keep_rows) is not int or not 0 <= keep_rows <= height or keep_rows % patch:
            raise ValueError(
                f"keep_rows must be a multiple of the patch height {patch} from 0 to {height}, "
                f"got {keep_rows!r}"
            )
        count = number_of_completed(images, options)
        kept = images[:, :, :keep_rows].detach()
        self.tokenizer.check_range(kept)
        prompt = self.tokenizer.encode(kept)
        count *= num_completions
        # one image serves several scales
        batch_size = None if count == 1 else count
        tokens = self.model.sample(batch_size, prompt, progress=progress, **options)
        completed = self.tokenizer.decode(tokens)
        # as they were: to tokens and back is not exact
        completed[:, :, :keep_rows] = kept.repeat_interleave(len(completed) // len(kept), dim=0)
        return completed

    @with_sampling_options
    def fill(
        self,
        images: Tensor,
        mask: Tensor,
        *,
        num_completions: int = 1,
        whole_patches: bool = False,
        progress: bool = False,
        **options: Unpack[SamplingOptions],
    ) -> Tensor:
        """Draws anew the region of images that a mask marks, by a model that draws in any order.

        Patches are drawn as a whole, those that the mask cuts too, without reading what it leaves
        of them.

        Args:
            images: (b c h w) with values in [0, 1]; one serves several labels or vectors. What the
                mask marks is not read. They may be larger than the model's, by whole patches: then
                windows are filled one after the other, that first of which most is known.
            mask: True for the pixels to draw, (h w), or (b h w) of images of the model's size.
            num_completions: of each image with its label and vectors, one after the other.
            whole_patches: patches that the mask cuts are taken from the drawing as a whole; by
                default their other pixels come back untouched, as all others do.
            progress: show a progress bar over the iterations.
            options: as of `sample`; `labels` and `cond` are one for all images or one for each.

        Returns:
            Images (b · num_completions, c h w).

        Raises:
            TypeError: the model draws in raster order alone.
        """
        given = dict(num_completions=num_completions, progress=progress, **options)
        if images.shape[-2:] != self.image_size and self.tokenizer.fits_on(images):
            given |= dict(whole_patches=whole_patches)
            return fill_canvas(self.fill, self.tokenizer, images, mask, **given)
        self.tokenizer.check_images(images)
        region = PixelRegion(self.tokenizer, images, mask, whole_patches)
        count = number_of_completed(images, options)
        tokens, drawn = (repeated(x, count) for x in (region.tokens, region.drawn))
        return region.paste(self.tokenizer.decode(self.model.fill(tokens, drawn, **given)))
