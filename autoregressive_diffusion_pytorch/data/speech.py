"""The built-in speech."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

SPEAKERS = [f"speaker {i}" for i in range(1, 10)]


def speech(split: Literal["train", "test"] = "train") -> tuple[list[Tensor], Tensor]:
    """Japanese vowels: utterances (n 12), 7 to 29 frames of cepstral coefficients, and speakers.

    Nine men say "ae". 270 utterances to train on and 370 to test with, of the UCI "Japanese Vowels"
    data (Kudo, Toyama & Shimbo 1999), as the package aeon ships them.

    Raises:
        ModuleNotFoundError: if aeon is not installed.
    """
    try:
        from aeon.datasets import load_japanese_vowels
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "the speech comes with aeon, which is not installed: "
            "pip install 'autoregressive-diffusion-pytorch[demo]'"
        ) from error
    utterances, speakers = load_japanese_vowels(split=split)
    labels = torch.tensor([int(speaker) - 1 for speaker in speakers])
    return [torch.from_numpy(one.T.copy()).float() for one in utterances], labels
