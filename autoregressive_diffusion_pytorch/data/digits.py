"""The built-in digits."""

from __future__ import annotations

import torch
from torch import Tensor


def digits() -> tuple[Tensor, Tensor]:
    """The 1,797 digits of scikit-learn: images (1797 1 8 8) in [0, 1], labels (1797,).

    The test set of the UCI "Optical Recognition of Handwritten Digits" data (Alpaydin & Kaynak
    1998): 17 levels of grey.

    Raises:
        ModuleNotFoundError: if scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "the digits come with scikit-learn, which is not installed: "
            "pip install 'autoregressive-diffusion-pytorch[demo]'"
        ) from error
    data = load_digits()
    return torch.from_numpy(data.images).float().unsqueeze(1) / 16, torch.from_numpy(
        data.target
    ).long()
