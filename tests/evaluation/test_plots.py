import sys

import numpy as np
import pytest
import torch
from PIL import Image

from autoregressive_diffusion_pytorch.evaluation import plots
from autoregressive_diffusion_pytorch.evaluation.plots import plot_curve, plot_surprise, plot_tuning


def point(evaluations, bits=None, distance=None, metric="frechet_distance"):
    point = dict(evaluations=evaluations)
    if bits is not None:
        point["bits_per_dim"] = dict(mean=bits, standard_error=0.1)
    if distance is not None:
        point["generated"] = {"sliced_wasserstein": 1.0, metric: distance}
    return point


def test_curves_with_and_without_distances(tmp_path):
    report = dict(bits_per_dim=dict(mean=4.4, standard_error=0.1, solver="dopri5"))
    plot_curve(
        report | dict(curve=[point(2, distance=9.0), point(4, 5.0, 3.0), point(8, 4.5, 2.0)]),
        tmp_path / "new" / "both.png",
    )
    plot_curve(report | dict(curve=[point(4, 5.0), point(8, 4.5)]), tmp_path / "bits.png")
    plot_curve(report | dict(curve=[point(2), point(3)]), tmp_path / "none.png")
    both, bits = Image.open(tmp_path / "new" / "both.png"), Image.open(tmp_path / "bits.png")
    assert both.width == 2 * bits.width
    assert list((tmp_path / "new").iterdir()) == [tmp_path / "new" / "both.png"]


@pytest.fixture
def lines(monkeypatch):
    """The title of the vertical axis and the points of the first line, for each part of the last
    figure."""
    drawn, save = {}, plots._save

    def record(figure, path):
        drawn.clear()
        for axis in (axis for axis in figure.axes if axis.lines):
            drawn[axis.get_xlabel()] = (
                axis.get_ylabel(),
                [tuple(point) for point in axis.lines[0].get_xydata().tolist()],
            )
        save(figure, path)

    monkeypatch.setattr(plots, "_save", record)
    return drawn


@pytest.mark.parametrize(
    ("metric", "title"),
    [
        ("frechet_distance", "Fréchet distance"),
        ("sliced_wasserstein", "sliced Wasserstein distance"),
    ],
)
def test_a_curve_is_of_the_distance_that_there_is(tmp_path, lines, metric, title):
    report = dict(bits_per_dim=dict(mean=4.4, standard_error=0.1, solver="dopri5"))
    plot_curve(
        report | dict(curve=[point(4, 5.0, 3.0, metric), point(8, 4.5, 2.0, metric)]),
        tmp_path / "curve.png",
    )
    assert list(lines.values())[-1] == (f"{title} of generated images", [(4, 3), (8, 2)])


def test_a_tuning_is_shown_around_the_settings_that_were_chosen(tmp_path, lines):
    def row(context_guidance, temperature, distance):
        return dict(
            context_guidance=context_guidance,
            temperature=temperature,
            num_steps=8,
            sliced_wasserstein=distance,
        )

    # the nearest by less than the margin is not chosen
    rows = [
        row(1.5, 0.95, 2.0),
        row(1.5, 1.0, 2.01),
        row(2.0, 1.0, 3.0),
        row(1.0, 1.0, 4.0),
        row(1.0, 0.95, 5.0),
    ]
    plot_tuning(
        dict(chosen=rows[1], metric="sliced_wasserstein", rows=rows), tmp_path / "new" / "tune.png"
    )
    distance = "sliced Wasserstein distance"
    assert lines == {
        "context guidance": (distance, [(1, 4), (1.5, 2.01), (2, 3)]),
        "temperature": (distance, [(0.95, 2), (1, 2.01)]),
    }
    assert list((tmp_path / "new").iterdir()) == [tmp_path / "new" / "tune.png"]
    plot_tuning(
        dict(chosen=rows[1], metric="sliced_wasserstein", rows=rows[1:2]), tmp_path / "one.png"
    )
    assert (tmp_path / "one.png").exists()


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_a_map_is_bright_where_an_image_is_surprising(tmp_path, channels):
    pictures = []
    for row, column in ((0, 0), (1, 2)):
        nats = torch.zeros(2, 3)
        nats[row, column] = 100.0
        plot_surprise(torch.zeros(channels, 8, 12), nats, tmp_path / "map.png")
        pictures.append(
            torch.from_numpy(np.array(Image.open(tmp_path / "map.png").convert("L"))).float()
        )
    difference = pictures[0] - pictures[1]
    above, below = ((sign * difference > 100).nonzero().float() for sign in (1, -1))
    assert len(above) == pytest.approx(len(below), rel=0.05)
    # one row lower and two columns to the right, in pictures of square pixels
    down, right = (below.mean(dim=0) - above.mean(dim=0)).tolist()
    assert right == pytest.approx(2 * 4 * down / 4, rel=0.05)
    assert down > 0


def test_without_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(
        ModuleNotFoundError, match=r"pip install 'autoregressive-diffusion-pytorch\[eval\]'"
    ):
        plot_surprise(torch.zeros(1, 8, 8), torch.zeros(2, 2), tmp_path / "map.png")
