"""A comparison of runs as one HTML file that needs no other."""

from __future__ import annotations

import base64
from html import escape
from pathlib import Path

from ..utils.files import atomic_write_text
from .comparison import Comparison, Row
from .curves import DARK, LIGHT, curves_html

STYLE = """
:root { color-scheme: light dark; --page: #fff; --text: #1d1d1b; --quiet: #6b6a64;
  --rule: #e3e2dd; %s }
@media (prefers-color-scheme: dark) {
  :root { --page: #1a1a19; --text: #f1f0ec; --quiet: #a3a29a; --rule: #383835;
    %s } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 1rem; background: var(--page);
  color: var(--text); font: 16px/1.45 system-ui, sans-serif; }
h1 { font-size: 1.35rem; margin: .2rem 0 1rem; overflow-wrap: anywhere; }
h2 { font-size: 1.05rem; margin: 2rem 0 .6rem; }
p, figcaption, .legend, .key { color: var(--quiet); font-size: .9rem; }
i { display: inline-block; width: .8em; height: .8em; border-radius: .2em; margin-right: .4em; }
.grids { display: flex; flex-wrap: wrap; gap: 1.2rem; align-items: flex-start; }
figure { margin: 0; flex: 1 1 16rem; max-width: 36rem; min-width: 0; }
figcaption { margin-bottom: .4rem; overflow-wrap: anywhere; }
figcaption b { color: var(--text); }
figure img { display: block; max-width: 100%%; height: auto; background: #fff; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem 1.1rem .35rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--rule); }
th, td { min-width: 5.5rem; max-width: 18rem; overflow-wrap: break-word; }
th:first-child { color: var(--quiet); font-weight: 400; position: sticky; left: 0;
  background: var(--page); white-space: nowrap; }
.plot { position: relative; height: 18rem; margin: .5rem 1rem 2rem 3.2rem; }
.plot svg { width: 100%%; height: 100%%; overflow: hidden; display: block; }
.plot path { fill: none; vector-effect: non-scaling-stroke; }
.rule { stroke: var(--rule); stroke-width: 1; }
.line { stroke-width: 2; stroke-linejoin: round; }
.dot { stroke-width: 9; stroke-linecap: round; }
.plot span { position: absolute; font-size: .8rem; color: var(--quiet); white-space: nowrap; }
.plot .y { right: calc(100%% + .5rem); transform: translateY(-50%%); }
.plot .x { top: calc(100%% + .3rem); transform: translateX(-50%%); }
@media (max-width: 40rem) { table { font-size: .9rem; } th, td { padding-right: .8rem; }
  th:first-child { white-space: normal; } }
.legend span { margin-right: 1.2rem; display: inline-block; }
"""


def write_page(comparison: Comparison, file: Path) -> None:
    atomic_write_text(file, page_of(comparison))


def page_of(comparison: Comparison) -> str:
    """The page: samples, settings, numbers and curves, with pictures as data URIs."""
    title = escape(" · ".join(comparison.names))
    colors = (
        " ".join(f"--run-{i}: {color};" for i, color in enumerate(shades))
        for shades in (LIGHT, DARK)
    )
    notes = "".join(f"<p>{escape(note)}</p>" for note in comparison.notes)
    sections = [
        ("Samples", _grids(comparison)),
        ("Settings that differ", _table(comparison, comparison.settings)),
        ("Numbers", _table(comparison, comparison.numbers) + notes),
        ("Loss", _curves(comparison)),
    ]
    body = "".join(f"<h2>{name}</h2>{content}" for name, content in sections if content)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{STYLE % tuple(colors)}</style></head>"
        f"<body><h1>{title}</h1>{body}</body></html>\n"
    )


def _swatch(run: int) -> str:
    return f'<i style="background:var(--run-{run % len(LIGHT)})"></i>'


def _grids(comparison: Comparison) -> str:
    figures = []
    for i, (name, grid) in enumerate(zip(comparison.names, comparison.grids, strict=True)):
        drawn = "no samples yet" if grid is None else f"step {grid[0]:,}"
        picture = ""
        if grid is not None:
            data = base64.b64encode(grid[1].read_bytes()).decode()
            alt = f"samples of {escape(name)}, {drawn}"
            picture = f'<img alt="{alt}" src="data:image/png;base64,{data}">'
        caption = f"<figcaption>{_swatch(i)}<b>{escape(name)}</b> {drawn}</figcaption>"
        figures.append(f"<figure>{caption}{picture}</figure>")
    return f'<div class="grids">{"".join(figures)}</div>'


def _table(comparison: Comparison, rows: list[Row]) -> str:
    if not rows:
        return "<p>None.</p>"
    names = "".join(
        f'<th scope="col">{_swatch(i)}{escape(name)}</th>'
        for i, name in enumerate(comparison.names)
    )
    lines = []
    for row in rows:
        texts = [escape(text) for text in row.texts]
        if row.best is not None:
            texts[row.best] = f"<b>{texts[row.best]}</b>"
        cells = "".join(f"<td>{text}</td>" for text in texts)
        lines.append(f'<tr><th scope="row">{escape(row.name)}</th>{cells}</tr>')
    head = f"<thead><tr><th></th>{names}</tr></thead>"
    return f'<div class="scroll"><table>{head}<tbody>{"".join(lines)}</tbody></table></div>'


def _curves(comparison: Comparison) -> str:
    plot = curves_html(comparison.losses, comparison.validation_losses)
    if not plot:
        return ""
    names = "".join(
        f"<span>{_swatch(i)}{escape(name)}</span>" for i, name in enumerate(comparison.names)
    )
    dots = any(comparison.validation_losses)
    key = "Lines: running average in training, by steps." + (" Dots: validation." if dots else "")
    return f'<div class="legend">{names}</div>{plot}<p>{key}</p>'
