"""What the engine is meant to reach, and what was measured of it: `make bench-claims`.

    python perf/claims.py          # the newest result of every kind in perf/results, as one table

A benchmark writes what it found of a claim under the claim's key; nothing is measured here.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from report import MachineMeter, Provenance, Report, Spread, add_results_option, device_kind, table

AT_LEAST, AT_MOST = "at least", "at most"
METHOD = """
Every figure is read from the newest result file that has it, which says how it was measured, when, at which
commit and on which machine; the newest by the time it was finished. Lowest and highest round are in
parentheses, and the median decides. What no file in the directory has is "not measured".
"""


@dataclass(frozen=True)
class Claim:
    """Something that a benchmark can show or refute.

    Args:
        text: what is measured, and in which unit.
        bound: `at least` or `at most`.
        limit: what the median must keep to.
    """

    text: str
    bound: str
    limit: float

    def holds(self, figure: Spread) -> bool:
        return figure.median >= self.limit if self.bound == AT_LEAST else figure.median <= self.limit

    def __str__(self) -> str:
        return f"{self.text}: {self.bound} {self.limit:g}"


CLAIMS: Mapping[str, Claim] = {
    "tiny alone": Claim("tiny, batch 1, float32, end to end: × upstream", AT_LEAST, 2.5),
    "0.6b alone, language models": Claim(
        "0.6B, batch 1, bfloat16, talker and predictor: × upstream", AT_LEAST, 1.6
    ),
    "0.6b alone": Claim("0.6B, batch 1, bfloat16, end to end: × upstream", AT_LEAST, 2.2),
    "0.6b alone, int8": Claim("0.6B, batch 1, int8, end to end: × upstream in bfloat16", AT_LEAST, 3.5),
    "0.6b memory": Claim(
        "0.6B, batch 1, bfloat16, talker and predictor: share of what the memory can do", AT_LEAST, 0.7
    ),
    "0.6b of 8, sequential": Claim("0.6B, batch 8, bfloat16: × upstream one by one", AT_LEAST, 10),
    "0.6b of 8, sequential, float32": Claim("0.6B, batch 8, float32: × upstream one by one", AT_LEAST, 6),
    "0.6b of 8, static": Claim(
        "0.6B, batch 8, bfloat16, equal lengths: × upstream's static batch", AT_LEAST, 1.8
    ),
    "0.6b of 8, static, float32": Claim(
        "0.6B, batch 8, float32, equal lengths: × upstream's static batch", AT_LEAST, 1.8
    ),
    "0.6b of 8, ragged": Claim(
        "0.6B, batch 8, bfloat16, ragged lengths: × upstream's static batch", AT_LEAST, 3
    ),
    "0.6b of 8, ragged, float32": Claim(
        "0.6B, batch 8, float32, ragged lengths: × upstream's static batch", AT_LEAST, 3
    ),
    "0.6b of 8, real time": Claim(
        "0.6B, batch 8, bfloat16: seconds of work per second of everybody's audio", AT_MOST, 1
    ),
    "0.6b of 16": Claim(
        "0.6B, bfloat16: cost per frame of 16 in flight, as a multiple of 8 in flight", AT_MOST, 1
    ),
    "codec, 25 frames": Claim("codec, chunk 8: × a window of 25 frames", AT_LEAST, 3.5),
    "codec, 72 frames": Claim("codec, chunk 8: × a window of 72 frames", AT_LEAST, 7),
    "codec, first chunk": Claim("codec: first chunk, as a multiple of one later frame", AT_MOST, 1.1),
    "codec, exact": Claim("codec: largest difference to the decode of all frames at once", AT_MOST, 1e-3),
    "first audio": Claim(
        "first audio of 10 s through Triton: × as early as upstream's whole utterance", AT_LEAST, 15
    ),
    "first audio, overhead": Claim(
        "the same, as a multiple of prefill, one frame and one codec frame", AT_MOST, 1.3
    ),
    "newcomer": Claim(
        "a newcomer's delay of running streams, as a multiple of one prefill and one frame", AT_MOST, 1
    ),
    "newcomer, heard": Claim("the same through Triton, of the longest gap between two chunks", AT_MOST, 1),
    "long utterance": Claim(
        "growth of a frame's cost from the 10th to the 1000th beyond attention's: share", AT_MOST, 0.1
    ),
    "triton, by its metrics": Claim(
        "Triton's overhead at 8 streams, by the time outside engine steps: share", AT_MOST, 0.05
    ),
    "triton, in process": Claim(
        "the same, against the same engine in a process of its own, client included: share", AT_MOST, 0.05
    ),
    "memory growth": Claim("memory after 1,000 requests over that after 100: share", AT_MOST, 0.02),
}

Findings = Mapping[str, Spread]  # by the claim's key


@dataclass(frozen=True)
class Finding:
    figure: Spread
    file: str  # the stem of the result file it is from


def claims_section(findings: Findings) -> str:
    """The table of one benchmark's own claims; empty where it has none to show."""
    unknown = findings.keys() - CLAIMS.keys()
    if unknown:
        raise KeyError(f"no such claims: {', '.join(sorted(unknown))}")
    rows = [(CLAIMS[key], figure, verdict(key, figure)) for key, figure in findings.items()]
    return "## Claims\n\n" + table(("claim", "figure", ""), rows) if rows else ""


def plain(findings: Findings) -> dict[str, object]:
    """For a result's JSON."""
    return {key: asdict(figure) for key, figure in findings.items()}


def verdict(key: str, figure: Spread | None) -> str:
    if figure is None:
        return "not measured"
    return "reached" if CLAIMS[key].holds(figure) else "**not reached**"


def gather(directory: Path) -> dict[str, Finding]:
    """The newest finding of every claim in a directory of results."""
    documents = [(path.stem, json.loads(path.read_text("utf-8"))) for path in directory.glob("*.json")]
    return merge(sorted(documents, key=lambda named: (named[1]["provenance"]["finished_at"], named[0])))


def merge(documents: Iterable[tuple[str, Mapping[str, Any]]]) -> dict[str, Finding]:
    """Results by name, oldest first: later ones win. Older kinds of results have no findings."""
    found = {}
    for name, document in documents:
        for key, figure in document.get("findings", {}).items():
            found[key] = Finding(Spread(**figure), name)
    return {key: finding for key, finding in found.items() if key in CLAIMS}


def rows(found: Mapping[str, Finding]) -> list[Sequence[object]]:
    """Every claim there is, measured or not."""
    lines: list[Sequence[object]] = []
    for key, claim in CLAIMS.items():
        finding = found.get(key)
        figure = finding.figure if finding else None
        link = f"[result]({finding.file}.md)" if finding else ""
        lines.append((claim, figure or "", verdict(key, figure), link))
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python perf/claims.py", description="Gather what was measured of every claim."
    )
    add_results_option(parser)
    options = parser.parse_args()
    meter = MachineMeter()
    found = gather(options.results)
    Report(
        title="What was claimed, and what was measured",
        name=f"{device_kind()}-claims",
        method=METHOD,
        sections=[table(("claim", "figure", "reached", "from"), rows(found))],
        figures={
            "claims": [
                {
                    **asdict(claim),
                    "verdict": verdict(key, found[key].figure if key in found else None).strip("*"),
                    **(asdict(found[key]) if key in found else {}),
                }
                for key, claim in CLAIMS.items()
            ]
        },
        provenance=Provenance.of(meter),
    ).publish(options.results)


if __name__ == "__main__":
    main()
