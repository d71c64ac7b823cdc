"""Models of images: a tokenizer and a sequence model."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Generator, Tensor
from torch.nn import Module

from ..heads.head import Head
from ..utils.validation import check_generator, check_share
from .autoregressive import Autoregressive
from .completion import CompletionMixin
from .generation import Generation
from .hub import Pretrained, without_sampling_of_1_0
from .latents import Latents
from .sequence_model import SequenceModel
from .settings import GenerationSettings, with_sampling_options
from .tokenizers import Patches

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .settings import SamplingOptions

CONTEXT_DROP_PROB = 0.1  # of image models, by default
DERIVED_ARGUMENTS = ("dim_input", "max_seq_len")  # of the sequence model, from the tokenizer
SHARED_ARGUMENTS = ("num_classes", "dim_cond")  # of both models


class ImageAutoregressive(Module, Pretrained, CompletionMixin):
    """An autoregressive model over the patches of images, by default in raster order.

    With an autoencoder it is one over the latents of images (Rombach et al. 2022,
    https://arxiv.org/abs/2112.10752). The autoencoder stays as it is, and is no part of the model's
    weights.

    Args:
        image_size, patch_size, channels: as of `Patches`, the tokenizer; with an autoencoder, as of
            `Latents`, where a patch is of latents.
        autoencoder: folder or name on the Hugging Face Hub of an autoencoder of diffusers, as of
            `FrozenAutoencoder`.
        train_max_noise: in [0, 1). In training, the transformer reads past tokens that are mixed
            with noise, whose fraction is drawn per image from U(0, train_max_noise): so it learns
            to go on from its own, imperfect tokens.
        num_classes: number of labels to condition on, none by default.
        dim_cond: width of vectors to condition on, none by default.
        model: arguments of the sequence model, `Autoregressive`, but for `dim_input` and
            `max_seq_len`, which follow from the sizes. By default its `context_drop_prob` is
            `CONTEXT_DROP_PROB`, so that `context_guidance` can be used; tokens are taken as they
            are, in [-1, 1]; and a head that can clamp drawn tokens to that range does. With an
            autoencoder, tokens are normalised and not clamped.
    """

    model_class: type[SequenceModel] = Autoregressive  # of the sequence model
    _has_seen_images = False  # whose range was checked

    def __init__(
        self,
        *,
        image_size: int | tuple[int, int],
        patch_size: int | tuple[int, int],
        channels: int = 3,
        autoencoder: str | None = None,
        train_max_noise: float = 0.0,
        num_classes: int | None = None,
        dim_cond: int | None = None,
        model: dict,
    ):
        super().__init__()
        if autoencoder is None:
            self.tokenizer = Patches(image_size, patch_size, channels)
        else:
            self.tokenizer = Latents(image_size, patch_size, autoencoder, channels)
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
        if model.get("predict_end"):
            raise ValueError("model must not hold 'predict_end': images have no end")
        self.train_max_noise = train_max_noise
        self.num_classes = num_classes
        self.dim_cond = dim_cond
        # pixels are in [-1, 1]; what an autoencoder makes of them, anywhere
        normalize = autoencoder is not None
        defaults = dict(context_drop_prob=CONTEXT_DROP_PROB, normalize=normalize)
        self.model = self.model_class(
            **defaults | model,
            dim_input=self.tokenizer.dim,
            max_seq_len=self.tokenizer.grid,
            num_classes=num_classes,
            dim_cond=dim_cond,
        )
        given = model.get(self.model_class.head_argument()) or {}
        is_clamped = autoencoder is None and hasattr(self.head, "clamp_during_sampling")
        if is_clamped and "clamp_during_sampling" not in given:
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

    def measure(self, images: Tensor | None = None, *, latents: Tensor | None = None, **_) -> None:
        """Measures the scale of tokens on images or latents, given as in `forward`."""
        self.model.measure(self._tokens(images, latents))

    def forward(
        self,
        images: Tensor | None = None,
        *,
        latents: Tensor | None = None,
        labels: Tensor | None = None,
        cond: Tensor | None = None,
        cond_mask: Tensor | None = None,
        loss_reduction: Literal["mean", "none"] = "mean",
    ) -> Tensor:
        """The loss of images (b c h w) with values in [0, 1], or of their latents.

        Args:
            images: of these or `latents` one is given.
            latents: (b c h w), of a model with an autoencoder, as it makes them of images.
            labels, cond, cond_mask: as of `Autoregressive.forward`.
            loss_reduction: "mean", or "none" for one loss per token, (b n).
        """
        tokens = self._tokens(images, latents)
        noised = None
        if self.training and self.train_max_noise > 0:
            like = dict(device=tokens.device, dtype=tokens.dtype)
            share = self.train_max_noise * torch.rand(len(tokens), 1, 1, **like)
            noise = self.model.normalization.inverse(torch.randn_like(tokens))
            noised = tokens.lerp(noise, share)
        conditions = dict(labels=labels, cond=cond, cond_mask=cond_mask)
        options = dict(noised_seq=noised, loss_reduction=loss_reduction)
        return self.model(tokens, **conditions, **options)

    def _tokens(self, images: Tensor | None, latents: Tensor | None) -> Tensor:
        """The tokens of images or of latents."""
        if (images is None) == (latents is None):
            got = "neither" if images is None else "both"
            raise TypeError(f"expected either images or latents, got {got}")
        if latents is not None:
            return self._tokens_of(latents)
        self._check_images(images)
        return self.tokenizer.draw(images)

    def _tokens_of(self, latents: Tensor) -> Tensor:
        if not isinstance(self.tokenizer, Latents):
            raise TypeError("latents are of models with an autoencoder; this one takes images")
        self.tokenizer.check_latents(latents)
        return self.tokenizer.tokens_of(latents)

    def _check_images(self, images: Tensor) -> None:
        """Whether these can be images, with the range of the first batch: to read it takes time."""
        self.tokenizer.check_images(images)
        if not (torch.compiler.is_compiling() or self._has_seen_images):
            self.tokenizer.check_range(images)
            self._has_seen_images = True

    def log_prob(
        self,
        images: Tensor | None = None,
        *,
        latents: Tensor | None = None,
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

        Of a model with an autoencoder it is the log-density of latents, not of images.

        Args:
            images: (b c h w) with values in [0, 1], which are rounded to multiples of 1 / 255.
            latents: instead, of a model with an autoencoder, as of `forward`.
            labels, cond, cond_mask: as of `forward`.
            generator: source of this noise and of that of the solver, on any device; by default
                torch's global one.
            solver_kwargs: as of the head's `log_prob`.

        Raises:
            TypeError: the head has no density; or images are given to a model with an autoencoder,
                or latents to one without.
        """
        options = dict(labels=labels, cond=cond, cond_mask=cond_mask, generator=generator)
        if latents is not None and images is None:
            check_generator(generator)
            return self.model.log_prob(self._tokens_of(latents), **options, **solver_kwargs)
        if isinstance(self.tokenizer, Latents):
            raise TypeError(
                "a model of latents has no density of images: log_prob(latents=…) gives that of "
                "latents, in nats per token"
            )
        if images is None or latents is not None:
            raise TypeError("expected images, and no latents: the model has no autoencoder")
        self.tokenizer.check_images(images)
        if len(images) == 0:
            raise ValueError("images must be at least one, got none")
        self.tokenizer.check_range(images, strict=True)
        check_generator(generator)
        tokens = self.tokenizer.dequantize(images, generator)
        log_densities = self.model.log_prob(tokens, **options, **solver_kwargs)
        return log_densities + tokens.shape[-1] * math.log(self.tokenizer.VALUE_INTERVAL)

    def bits_per_dim(self, images: Tensor, **kwargs) -> Tensor:
        """The bits per value of images (b c h w) of a code by the model, (b): less is better.

        8 are the images' own. On average over the noise an upper bound. Arguments as of `log_prob`.
        """
        return -self.log_prob(images, **kwargs).sum(dim=-1) / (images[0].numel() * math.log(2))

    def nats_per_dim(self, latents: Tensor, **kwargs) -> Tensor:
        """The negative log-density per value of latents (b c h w), in nats, (b): less is better.

        Numbers of different autoencoders do not compare. Arguments as of `log_prob`.
        """
        log_prob = self.log_prob(latents=latents, **kwargs)
        return -log_prob.sum(dim=-1) / latents[0].numel()

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
        generation = Generation(self.model, batch_size, options)
        return map(self.tokenizer.decode, generation.growing())
