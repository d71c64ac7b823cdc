"""Latents of a codec for audio, of diffusers, as tokens."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import AutoencoderOobleck


@cache
def codec_of(name: str) -> AutoencoderOobleck:
    """The codec in a folder or of a name on the Hugging Face Hub; its weights are safetensors.

    Evans et al. 2024, "Stable Audio Open" (https://arxiv.org/abs/2407.14358).

    Raises:
        ModuleNotFoundError: if diffusers is not installed.
        OSError: if there is no such codec.
    """
    try:
        from diffusers import AutoencoderOobleck
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "codecs come with diffusers, which is not installed: "
            "pip install 'autoregressive-diffusion-pytorch[latents]'"
        ) from error
    codec = AutoencoderOobleck.from_pretrained(name, use_safetensors=True)
    return codec.eval().requires_grad_(False)


@torch.no_grad()
def encode(name: str, samples: Tensor) -> Tensor:
    """The mean latents (n d) of audio (samples, channels), whose end is filled up with silence."""
    codec = codec_of(name)
    audio = torch.nn.functional.pad(samples.T, (0, -len(samples) % codec.hop_length))
    return codec.encode(audio.unsqueeze(0)).latent_dist.mode()[0].T


@torch.no_grad()
def decode(name: str, seq: Tensor) -> Tensor:
    """Audio (samples, channels) of latents (n d)."""
    return codec_of(name).decode(seq.T.unsqueeze(0)).sample[0].T
