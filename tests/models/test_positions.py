import torch
from helpers import stir

from autoregressive_diffusion_pytorch.models.positions import AxialPositions


def test_axial_positions_are_sums_over_the_axes():
    positions = stir(AxialPositions(5, (2, 3, 4)), 1.0)
    a, b, c = positions.tables
    expected = (a[:, None, None] + b[None, :, None] + c[None, None, :]).reshape(24, 5)
    torch.testing.assert_close(positions(torch.arange(24)), expected)
    torch.testing.assert_close(positions(torch.arange(7, 19)), expected[7:19])
