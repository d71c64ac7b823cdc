"""Latents of an autoencoder as tokens: images go through one of diffusers, which stays frozen."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HFValidationError, LocalEntryNotFoundError
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from ..utils.rng import Generators, randn
from ..utils.validation import as_height_and_width
from .tokenizers import Tokenizer, patchify, unpatchify

if TYPE_CHECKING:
    from torch.nn import Module

CONFIG_FILE = "config.json"
PIPELINE_FOLDER = "vae"  # of the autoencoder in a whole pipeline
PREFIX = "Autoencoder"  # of the names of their classes


def need_diffusers() -> None:
    """Raises a ModuleNotFoundError, which says what to install, if diffusers is not there."""
    try:
        import diffusers  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "autoencoders come with diffusers, which is not installed: "
            "pip install 'autoregressive-diffusion-pytorch[latents]'"
        ) from error


class FrozenAutoencoder:
    """An autoencoder of diffusers by its folder or its name on the Hugging Face Hub.

    Its configuration is read at once, its weights when they are first needed, from safetensors
    alone. It is no part of a model's weights: copies of a model share it.

    Args:
        name: a folder or a name, of the autoencoder or of a pipeline with one in `vae`.

    Raises:
        ModuleNotFoundError: if diffusers is not installed.
        OSError: if there is no such autoencoder.
        ValueError: if it is none of diffusers for images.
    """

    def __init__(self, name: str | Path):
        need_diffusers()
        import diffusers

        self.name = str(name)
        self.subfolder, self.config = _read_config(self.name)
        kind = str(self.config.get("_class_name"))
        self.kind = getattr(diffusers, kind, None) if kind.startswith(PREFIX) else None
        if not isinstance(self.kind, type):
            raise ValueError(
                f"autoencoder {self.name} must be one of diffusers, whose class is {PREFIX}…, got "
                f"{kind}"
            )
        self.channels = self.config.get("in_channels", 3)
        self.scale = self.config.get("scaling_factor") or 1.0
        self.shift = self.config.get("shift_factor") or 0.0
        self._module: Module | None = None

    def __deepcopy__(self, memo: dict) -> FrozenAutoencoder:
        return self

    def latent_shape(self, image_size: tuple[int, int]) -> tuple[int, int, int]:
        """Channels, rows and columns of the latents of an image, found without weights.

        Raises:
            ValueError: if it does not take images of this size.
        """
        try:
            with torch.device("meta"):
                module = self.kind.from_config(self.config).eval()
                images = torch.zeros(1, self.channels, *image_size)
            with torch.no_grad():
                mean, _ = _posterior(module.encode(images))
                decoded = module.decode(mean).sample
        except Exception as error:
            raise ValueError(
                f"autoencoder {self.name} ({self.kind.__name__}) does not take images "
                f"(1 {self.channels} {image_size[0]} {image_size[1]}): {error}"
            ) from error
        if mean.ndim != 4 or decoded.shape != images.shape:
            raise ValueError(
                f"image_size must be a multiple of what autoencoder {self.name} makes one latent "
                f"of, got {image_size}: it decodes to {tuple(decoded.shape[2:])}"
            )
        return tuple(mean.shape[1:])

    @torch.compiler.disable
    @torch.no_grad()
    def encode(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """The mean and std of the posterior of latents (b c h w), in single precision.

        None for the std of an autoencoder that has no posterior. `scaling_factor` and
        `shift_factor` of its configuration are applied.

        Args:
            images: (b c h w) with values in [0, 1].
        """
        with torch.autocast(images.device.type, enabled=False):
            module = self._on(images.device)
            mean, std = _posterior(module.encode(images.float() * 2 - 1))
        return (mean - self.shift) * self.scale, None if std is None else std * self.scale

    @torch.compiler.disable
    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Images (b c h w) in [0, 1] of latents."""
        with torch.autocast(latents.device.type, enabled=False):
            module = self._on(latents.device)
            decoded = module.decode(latents.float() / self.scale + self.shift).sample
        return (decoded / 2 + 0.5).clamp(0, 1)

    def fingerprint(self) -> str:
        """The SHA-256 hash of its weights by their names."""
        weights = self._on(torch.device("cpu")).state_dict()
        digest = hashlib.sha256()
        for name, weight in sorted(weights.items()):
            digest.update(name.encode())
            digest.update(weight.numpy().tobytes())
        return digest.hexdigest()

    def _on(self, device: torch.device) -> Module:
        """The module with its weights, on a device."""
        if self._module is None:
            with torch.inference_mode(False):
                options = dict(use_safetensors=True, torch_dtype=torch.float32)
                if self.subfolder is not None:
                    options |= dict(subfolder=self.subfolder)
                module = self.kind.from_pretrained(self.name, **options)
                self._module = module.eval().requires_grad_(False)
        if self._module.device != device:
            self._module.to(device)
        return self._module


def _posterior(encoded: Any) -> tuple[Tensor, Tensor | None]:
    """Mean and std of what an autoencoder's `encode` gives."""
    if (posterior := getattr(encoded, "latent_dist", None)) is not None:
        return posterior.mean, posterior.std
    for name in ("latents", "latent"):
        if (latents := getattr(encoded, name, None)) is not None:
            return latents, None
    raise TypeError(f"it encodes to {type(encoded).__name__}")


def _read_config(name: str) -> tuple[str | None, dict[str, Any]]:
    """The folder in which the autoencoder lies there, None for itself, and its configuration."""
    for subfolder in (None, PIPELINE_FOLDER):
        path = _config_file(name, subfolder)
        if path is None:
            continue
        try:
            config = json.loads(path.read_text())
        except ValueError as error:
            raise ValueError(f"{path} of autoencoder {name} is damaged: {error}") from error
        if not isinstance(config, dict):
            raise ValueError(f"{path} of autoencoder {name} is damaged: it holds no arguments")
        return subfolder, config
    raise FileNotFoundError(
        f"autoencoder {name} holds no {CONFIG_FILE}, nor a folder {PIPELINE_FOLDER} with one"
    )


def _config_file(name: str, subfolder: str | None) -> Path | None:
    """The configuration in a folder or on the Hub, None if there is none."""
    file = CONFIG_FILE if subfolder is None else f"{subfolder}/{CONFIG_FILE}"
    if Path(name).is_dir():
        path = Path(name) / file
        return path if path.is_file() else None
    try:
        return Path(hf_hub_download(name, file))
    except HFValidationError as error:
        raise FileNotFoundError(f"the folder {name} of the autoencoder does not exist") from error
    except LocalEntryNotFoundError as error:
        raise FileNotFoundError(
            f"autoencoder {name} is no folder here, and cannot be had from the Hugging Face Hub: "
            f"{error}"
        ) from error
    except EntryNotFoundError:
        return None


class Latents(Tokenizer):
    """Latents of an autoencoder, row by row: each token (channel, height, width) of them.

    Args:
        image_size: height and width of the images, one number for square ones.
        patch_size: rows and columns of latents in a token, one number for squares: 1 as a rule.
        autoencoder: as of `FrozenAutoencoder`.
        channels: of the images; those of the autoencoder.
    """

    def __init__(
        self,
        image_size: int | tuple[int, int],
        patch_size: int | tuple[int, int],
        autoencoder: str,
        channels: int = 3,
    ):
        super().__init__()
        self.image_size = as_height_and_width("image_size", image_size)
        self.patch_size = as_height_and_width("patch_size", patch_size)
        self.autoencoder = FrozenAutoencoder(autoencoder)
        self.channels = self.autoencoder.channels
        if channels != self.channels:
            raise ValueError(
                f"channels must be {self.channels}, as of autoencoder {autoencoder}, got {channels}"
            )
        self.latent_shape = self.autoencoder.latent_shape(self.image_size)
        width, *size = self.latent_shape
        if any(cells % patch for cells, patch in zip(size, self.patch_size, strict=True)):
            raise ValueError(
                f"patch_size {patch_size} does not divide the latents of {size[0]} x {size[1]}"
            )
        self.grid = tuple(n // patch for n, patch in zip(size, self.patch_size, strict=True))
        self.dim = width * self.patch_size[0] * self.patch_size[1]

    def encode(self, images: Tensor) -> Tensor:
        """The mean of the posterior, as tokens."""
        return self.tokens_of(self.autoencoder.encode(images)[0])

    def encode_rows(self, images: Tensor) -> Tensor:
        rows = images.shape[2]
        below = images.new_zeros(*images.shape[:2], self.image_size[0] - rows, images.shape[3])
        whole = torch.cat((images, below), dim=2)
        hidden = torch.zeros_like(whole[:, :1], dtype=torch.bool)
        hidden[:, :, rows:] = True
        return self.encode_known(whole, hidden)[:, : rows // self.cell[0] * self.grid[1]]

    def encode_known(self, images: Tensor, hidden: Tensor) -> Tensor:
        # the encoder reads around a latent: in the place of what is hidden it sees what is near
        return self.encode(spread(images, hidden))

    def draw(self, images: Tensor) -> Tensor:
        return self.tokens_of(self.latents_of(images))

    def latents_of(self, images: Tensor, generator: Generators = None) -> Tensor:
        """Latents (b c h w) of images, drawn from their posteriors."""
        mean, std = self.autoencoder.encode(images)
        if std is None:
            return mean
        return mean + std * randn(mean.shape, generator, mean.device, mean.dtype)

    def decode(self, tokens: Tensor) -> Tensor:
        size = self.latent_shape[1:]
        return self.autoencoder.decode(unpatchify(tokens, self.patch_size, size))

    def tokens_of(self, latents: Tensor) -> Tensor:
        return patchify(latents, self.patch_size)

    def check_latents(self, latents: Tensor) -> None:
        if not latents.is_floating_point():
            raise TypeError(f"latents must be real numbers, got {latents.dtype}")
        if latents.ndim != 4 or latents.shape[1:] != self.latent_shape:
            expected = " ".join(map(str, self.latent_shape))
            raise ValueError(f"latents must be of shape (b {expected}), got {tuple(latents.shape)}")


def spread(images: Tensor, hidden: Tensor) -> Tensor:
    """Images (b c h w) with what is hidden (b 1 h w) replaced by averages of what is near.

    The coarser, the farther from all that is known; grey where nothing is.
    """
    images = images.masked_fill(hidden, 0)
    known = (~hidden).to(images.dtype).expand(len(images), -1, -1, -1)
    if not hidden.any():
        return images
    if max(images.shape[2:]) == 1:
        return torch.where(hidden, torch.full_like(images, 0.5), images)
    share = avg_pool2d(known, 2, ceil_mode=True)
    coarse = avg_pool2d(images, 2, ceil_mode=True) / share.clamp(min=1e-3)
    coarse = spread(coarse, share == 0)
    return torch.where(hidden, interpolate(coarse, images.shape[2:], mode="bilinear"), images)
