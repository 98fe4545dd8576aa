"""The dashboard as a page: each panel where Grafana would put it, its curves drawn as SVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from typing import Any

from prometheus_server import History

Panel = Mapping[str, Any]
Curves = Sequence[tuple[str, History]]
"""Legends and what belongs to them."""

WIDTH, HEIGHT = 300, 100  # of a panel's drawing, in units of its own
STYLE = """
body { display: grid; grid-template-columns: repeat(24, 1fr); grid-auto-rows: 30px; gap: 6px }
body { font: 12px sans-serif }
figure, h2 { margin: 0; overflow: hidden }
figure { border: 1px solid silver }
svg { width: 100%; height: 60% }
path { fill: none; stroke: steelblue; vector-effect: non-scaling-stroke }
"""


def page_of(panels: Sequence[Panel], curves_of: Callable[[Panel], Curves]) -> str:
    """HTML of a dashboard's panels, rows among them."""
    return f"<!doctype html><style>{STYLE}</style>{''.join(_placed(it, curves_of) for it in panels)}"


def _placed(panel: Panel, curves_of: Callable[[Panel], Curves]) -> str:
    at = panel["gridPos"]
    area = f"grid-area: {at['y'] + 1} / {at['x'] + 1} / span {at['h']} / span {at['w']}"
    title = escape(panel["title"])
    if panel["type"] == "row":
        return f'<h2 style="{area}">{title}</h2>'
    drawing = _drawing(curves_of(panel), panel["fieldConfig"]["defaults"])
    return f'<figure aria-label="{title}" style="{area}">{title} {drawing}</figure>'


def _drawing(curves: Curves, defaults: Mapping[str, Any]) -> str:
    points = [point for _, history in curves for point in history.points if math.isfinite(point[1])]
    if not points:
        return "No data"
    moments, values = zip(*points, strict=True)
    lowest, highest = defaults.get("min", min(values)), defaults.get("max", max(values))

    def place(moment: float, value: float) -> str:
        x = (moment - min(moments)) / (max(moments) - min(moments) or 1) * WIDTH
        y = HEIGHT - (value - lowest) / (highest - lowest or 1) * HEIGHT
        return f"{x:.2f} {y:.2f}"

    paths = "".join(
        f'<path d="{" ".join(_strokes(history, place))}"><title>{escape(legend)}</title></path>'
        for legend, history in curves
    )
    legends = ", ".join(f"{escape(legend)}: {history.points[-1][1]:.3g}" for legend, history in curves)
    frame = f'viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none"'
    return f"(up to {highest:.3g} {escape(defaults['unit'])})<svg {frame}>{paths}</svg>{legends}"


def _strokes(history: History, place: Callable[[float, float], str]) -> Iterator[str]:
    """Of an SVG path, which begins anew behind each gap."""
    pen = "M"
    for moment, value in history.points:
        if math.isfinite(value):
            yield f"{pen}{place(moment, value)}"
            pen = "L"
        else:
            pen = "M"
