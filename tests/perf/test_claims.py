"""A table of claims shows the newest figure of each, and hides neither a failure nor a gap."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from claims import CLAIMS, claims_section, gather, merge, plain, rows, verdict
from report import Spread

FAST, SLOW = Spread.of([2.4, 2.5, 9]), Spread.of([2.0, 2.4, 9])


def write_result(directory: Path, name: str, finished_at: str, **findings: Spread) -> None:
    document = {"findings": plain(findings), "provenance": {"finished_at": finished_at}}
    (directory / f"{name}.json").write_text(json.dumps(document))


def test_the_median_decides_and_the_limit_itself_is_reached() -> None:
    assert verdict("tiny alone", FAST) == "reached"
    assert verdict("tiny alone", SLOW) == "**not reached**"


def test_a_claim_of_at_most_is_refuted_from_above() -> None:
    assert verdict("memory growth", Spread.of([0.02])) == "reached"
    assert verdict("memory growth", Spread.of([0.021])) == "**not reached**"


def test_the_newest_file_wins_whatever_its_name(tmp_path: Path) -> None:
    write_result(tmp_path, "b", "2026-11-22 20:14:54 +0000", **{"tiny alone": FAST})
    write_result(tmp_path, "a", "2026-11-22 20:15:54 +0000", **{"tiny alone": SLOW})
    found = gather(tmp_path)
    assert (found["tiny alone"].figure, found["tiny alone"].file) == (SLOW, "a")


def test_results_in_parts_join_to_one_table() -> None:
    parts = [
        ("one", {"findings": plain({"tiny alone": FAST})}),
        ("other", {"findings": plain({"memory growth": SLOW})}),
        ("older kind", {"targets": []}),
    ]
    assert {key: finding.file for key, finding in merge(parts).items()} == {
        "tiny alone": "one",
        "memory growth": "other",
    }


def test_every_claim_has_its_row_measured_or_not() -> None:
    found = merge([("one", {"findings": plain({"tiny alone": FAST})})])
    verdicts = [row[2] for row in rows(found)]
    assert verdicts == ["reached", *["not measured"] * (len(CLAIMS) - 1)]


def test_a_benchmark_cannot_find_what_nobody_claimed() -> None:
    with pytest.raises(KeyError, match="no such claims: sales"):
        claims_section({"sales": FAST})


def test_a_figure_survives_the_file() -> None:
    assert Spread(**asdict(FAST)) == FAST
