"""Figures for the eye: small SVG files, the same bytes for the same figures."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import matplotlib
from matplotlib.figure import Figure

from report import Spread

matplotlib.use("Agg")
# Text stays text, and the ids in a file follow from its content alone.
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "qwen3-tts",
    "font.size": 9,
    "axes.grid": True,
    "grid.alpha": 0.3,
}
SIZE_INCHES = (5.2, 3.2)

Line = Mapping[float, Spread]
"""y by x"""


def line_plot(
    lines: Mapping[str, Line], x: str, y: str, target: float | None = None, is_logarithmic: bool = False
) -> str:
    """One line per name with its lowest and highest, as SVG.

    Args:
        lines: by name; those without points are left out.
        x, y: the axes' names, units included.
        target: where a dashed line goes.
        is_logarithmic: of y, where lines lie decades apart.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(SIZE_INCHES, layout="constrained")
        axes = figure.subplots()
        for name, line in lines.items():
            if line:
                _draw(axes, name, line)
        if target is not None:
            axes.axhline(target, linestyle="--", color="grey", linewidth=1)
        if is_logarithmic:
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=0)
        axes.set(xlabel=x, ylabel=y)
        axes.set_xticks(_ticks(lines.values()))
        axes.legend(fontsize=8)
        return _svg(figure)


def once(value: float) -> Spread:
    """A point without a spread, such as a percentile."""
    return Spread(value, value, value)


def _draw(axes: matplotlib.axes.Axes, name: str, line: Line) -> None:
    spreads = [line[x] for x in sorted(line)]
    middle = [spread.median for spread in spreads]
    below = [spread.median - spread.low for spread in spreads]
    above = [spread.high - spread.median for spread in spreads]
    axes.errorbar(sorted(line), middle, [below, above], label=name, marker="o", markersize=3, capsize=2)


def _ticks(lines: Sequence[Line]) -> list[float]:
    return sorted({x for line in lines for x in line})


def _svg(figure: Figure) -> str:
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    # Matplotlib ends lines of paths with a blank, which whoever checks the repository for those would mend.
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"
