import sys

import numpy as np
import pytest
import torch
from PIL import Image

from autoregressive_diffusion_pytorch.evaluation_plots import plot_curve, plot_surprise


def point(evaluations, bits=None, distance=None):
    point = dict(evaluations=evaluations)
    if bits is not None:
        point["bits_per_dim"] = dict(mean=bits, standard_error=0.1)
    if distance is not None:
        point["generated"] = dict(frechet_distance=distance)
    return point


def test_curves_with_and_without_distances(tmp_path):
    report = dict(bits_per_dim=dict(mean=4.4, standard_error=0.1, solver="dopri5"))
    plot_curve(report | dict(curve=[point(2, distance=9.0), point(4, 5.0, 3.0), point(8, 4.5, 2.0)]), tmp_path / "new" / "both.png")
    plot_curve(report | dict(curve=[point(4, 5.0), point(8, 4.5)]), tmp_path / "bits.png")
    plot_curve(report | dict(curve=[point(2), point(3)]), tmp_path / "none.png")
    both, bits = Image.open(tmp_path / "new" / "both.png"), Image.open(tmp_path / "bits.png")
    assert both.width == 2 * bits.width
    assert list((tmp_path / "new").iterdir()) == [tmp_path / "new" / "both.png"]


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_a_map_is_bright_where_an_image_is_surprising(tmp_path, channels):
    pictures = []
    for row, column in ((0, 0), (1, 2)):
        nats = torch.zeros(2, 3)
        nats[row, column] = 100.0
        plot_surprise(torch.zeros(channels, 8, 12), nats, tmp_path / "map.png")
        pictures.append(torch.from_numpy(np.array(Image.open(tmp_path / "map.png").convert("L"))).float())
    difference = pictures[0] - pictures[1]
    above, below = ((sign * difference > 100).nonzero().float() for sign in (1, -1))
    assert len(above) == pytest.approx(len(below), rel=0.05)
    # one row lower and two columns to the right, in pictures of square pixels
    down, right = (below.mean(dim=0) - above.mean(dim=0)).tolist()
    assert right == pytest.approx(2 * 4 * down / 4, rel=0.05)
    assert down > 0


def test_without_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'autoregressive-diffusion-pytorch\[eval\]'"):
        plot_surprise(torch.zeros(1, 8, 8), torch.zeros(2, 2), tmp_path / "map.png")
