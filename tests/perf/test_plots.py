"""Plots are files to keep in a repository: small, text, and the same for the same figures."""

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from plots import line_plot, once
from report import Machine, Provenance, Report, Spread

LINES = {"ours": {1: Spread(1, 0.5, 2), 8: Spread(3, 2, 4)}, "theirs": {1: once(2), 8: once(5)}}


def test_the_same_figures_make_the_same_bytes() -> None:
    assert line_plot(LINES, "batch", "ms") == line_plot(LINES, "batch", "ms")


def test_other_figures_make_another_plot() -> None:
    assert line_plot(LINES, "batch", "ms") != line_plot({"ours": LINES["ours"]}, "batch", "ms")


def test_a_plot_is_small_and_its_words_are_text() -> None:
    svg = line_plot(LINES, "batch", "ms", target=80, is_logarithmic=True)
    words = "".join(ElementTree.fromstring(svg).itertext())
    assert all(word in words for word in ("ours", "theirs", "batch", "ms"))
    assert len(svg) < 60_000


def test_a_line_without_points_is_left_out() -> None:
    assert "nobody" not in line_plot({**LINES, "nobody": {}}, "batch", "ms")


@pytest.fixture
def report() -> Report:
    provenance = Provenance("now", "python x", "none", Machine("a", 2, 4.0, None, "b"), {}, {}, 0.0)
    plots = {"Cost, by batch": line_plot(LINES, "batch", "ms")}
    return Report("Title", "cpu-x", "How.", ["text"], {"figure": 1}, provenance, plots)


def test_a_report_shows_the_plots_that_lie_beside_it(report: Report, tmp_path: Path) -> None:
    written = {path.suffix: path for path in report.write(tmp_path / "new")}
    assert set(written) == {".json", ".md", ".svg"}
    assert f"![Cost, by batch]({written['.svg'].name})" in written[".md"].read_text()
