"""Curves of runs over each other: what of them is shown, and as a picture in a page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Points = list[tuple[int, float]]

# by the run's place; after the last the first again
LIGHT = ("#2a78d6", "#eb6834", "#1baf7a", "#4a3aa7", "#eda100", "#e34948")
DARK = ("#3987e5", "#d95926", "#199e70", "#9085e9", "#c98500", "#e66767")

MOST_POINTS = 400  # of a curve
FIRST_SHARE = 0.05  # of a curve, which falls steeply there: it does not set the scale


@dataclass(frozen=True)
class Frame:
    """The part of the plane that is shown: from 0 to `right`, from `bottom` to `top`."""

    right: float
    bottom: float
    top: float

    def place(self, step: float, value: float) -> tuple[float, float]:
        """Shares of the width and, from above, of the height."""
        return step / self.right, (self.top - value) / (self.top - self.bottom)


def frame_of(curves: Sequence[Points]) -> Frame | None:
    """The frame that curves are seen in, without their first steep part; None without a point."""
    right = max((points[-1][0] for points in curves if points), default=0)
    if right == 0:
        return None
    late = [points[int(FIRST_SHARE * len(points)) :] for points in curves]
    values = [value for points in late for _, value in points]
    bottom, top = min(values), max(values)
    margin = 0.05 * (top - bottom) or 0.5 * abs(top) or 1.0
    return Frame(1.02 * right, bottom - margin, top + margin)


def thinned(points: Points) -> Points:
    """Points of a curve, few enough for a picture; the first and the last among them."""
    stride = math.ceil(len(points) / MOST_POINTS)
    return points if stride <= 1 else [*points[:-1:stride], points[-1]]


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers from low to high."""
    step = 10 ** math.floor(math.log10((high - low) / most))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (factor * step) <= most)
    return [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def curves_html(lines: Sequence[Points], dots: Sequence[Points]) -> str:
    """Curves in a frame that is as wide as there is room, and its numbers, readable at any width.

    Args:
        lines, dots: of each run, drawn in its colour `var(--run-i)`.
    """
    frame = frame_of([*lines, *dots])
    if frame is None:
        return ""
    parts, labels = [], []
    for value in ticks(frame.bottom, frame.top):
        _, y = frame.place(0, value)
        parts.append(f'<path class="rule" d="M0 {100 * y:.2f}H100"/>')
        labels.append(f'<span class="y" style="top:{100 * y:.2f}%">{value:.4g}</span>')
    for step in ticks(0, frame.right):
        x, _ = frame.place(step, frame.top)
        labels.append(f'<span class="x" style="left:{100 * x:.2f}%">{step:,.0f}</span>')
    for i, (line, own_dots) in enumerate(zip(lines, dots, strict=True)):
        color = f'style="stroke:var(--run-{i % len(LIGHT)})"'
        places = [frame.place(*point) for point in thinned(line)]
        if places:
            path = "L".join(f"{100 * x:.2f} {100 * y:.2f}" for x, y in places)
            parts.append(f'<path class="line" {color} d="M{path}"/>')
        for x, y in (frame.place(*point) for point in thinned(own_dots)):
            parts.append(f'<path class="dot" {color} d="M{100 * x:.2f} {100 * y:.2f}h0"/>')
    picture = f'<svg viewBox="0 0 100 100" preserveAspectRatio="none">{"".join(parts)}</svg>'
    return f'<div class="plot">{picture}{"".join(labels)}</div>'
