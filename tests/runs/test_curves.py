import re

import pytest

from autoregressive_diffusion_pytorch.runs.curves import (
    MOST_POINTS,
    curves_html,
    frame_of,
    thinned,
    ticks,
)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 2000, [0, 500, 1000, 1500, 2000]),
        (0.27, 0.93, [0.4, 0.6, 0.8]),
        (-1.2, 1.2, [-1, -0.5, 0, 0.5, 1]),
    ],
)
def test_ticks_are_round(low, high, expected):
    assert ticks(low, high) == pytest.approx(expected)


def test_the_steep_start_does_not_set_the_scale():
    points = [(step, 1000.0 if step < 5 else 2.0 - step / 100) for step in range(1, 101)]
    frame = frame_of([points, []])
    assert frame.right == pytest.approx(102)
    assert 1.9 < frame.top < 2.1
    assert 0.9 < frame.bottom < 1.0
    assert frame.place(51, (frame.top + frame.bottom) / 2) == pytest.approx((0.5, 0.5))


@pytest.mark.parametrize("value", [0.0, 3.0, -3.0])
def test_a_level_curve_has_a_frame(value):
    frame = frame_of([[(1, value), (2, value)]])
    assert frame.bottom < value < frame.top


def test_no_points_make_no_picture():
    assert frame_of([[], []]) is None
    assert curves_html([[], []], [[], []]) == ""


def test_long_curves_are_thinned():
    points = [(step, 0.0) for step in range(10_001)]
    few = thinned(points)
    assert len(few) <= MOST_POINTS + 1
    assert (few[0], few[-1]) == (points[0], points[-1])
    assert thinned(points[:3]) == points[:3]


def test_a_picture_has_a_line_and_dots_for_each_run():
    line = [(1, 1.0), (2, 0.5)]
    html = curves_html([line, line, []], [[], [(2, 0.4)], []])
    assert len(re.findall('class="line"', html)) == 2
    assert len(re.findall('class="dot"', html)) == 1
    assert "var(--run-1)" in html
    assert "var(--run-2)" not in html
