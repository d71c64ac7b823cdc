"""What heads share that must know the scale of the tokens."""

from __future__ import annotations

from math import nan
from typing import Any

import torch
from torch import Tensor

from ..utils.measured import MeasuredModule
from ..utils.validation import check_above_zero
from .head import Head

SIGMA_DATA = 0.5  # of a head that is not trained yet


class ScaledHead(MeasuredModule, Head):
    """A head with `sigma_data`, the std of the tokens' entries, stored with its weights.

    Args:
        dim_token, dim_z: as of `Head`.
        sigma_data: None to measure it.
    """

    measured_buffers = ("sigma_data",)

    def __init__(self, dim_token: int, dim_z: int, sigma_data: float | None = None):
        super().__init__(dim_token, dim_z)
        check_above_zero(sigma_data=SIGMA_DATA if sigma_data is None else sigma_data)
        value = nan if sigma_data is None else float(sigma_data)
        self.register_buffer("sigma_data", torch.tensor(value))
        self._given_sigma_data = sigma_data
        self._is_measured = sigma_data is not None

    @property
    def scale(self) -> float:
        """`sigma_data` as a number, `SIGMA_DATA` until it is known."""
        return self.sigma_data.item() if self.is_measured else SIGMA_DATA

    @property
    def training_scale(self) -> Tensor | float:
        """The same, not read back from the device."""
        return self.sigma_data if self.is_measured else SIGMA_DATA

    @property
    def config(self) -> dict[str, Any]:
        measured = self.sigma_data.item() if self.is_measured else None
        known = measured if self._given_sigma_data is None else self._given_sigma_data
        return super().config | dict(sigma_data=known)

    @torch.no_grad()
    def measure(self, tokens: Tensor) -> None:
        """Takes the std of the entries of tokens (… d) for `sigma_data`, unless it is known."""
        if not self.is_measured and tokens.numel() > 1:
            std = tokens.float().std()
            if std > 0:
                self.sigma_data.copy_(std)
                self._is_measured = True

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        # weights of version 1.0.0 have no such entry: there it was an argument alone
        if not self.sigma_data.is_meta:
            state_dict.setdefault(f"{prefix}sigma_data", torch.tensor(self.scale))
        super()._load_from_state_dict(state_dict, prefix, *args)
