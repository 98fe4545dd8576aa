"""The whole grid, every part in a process of its own: `make bench-full`.

    python perf/grid.py                     # every part, then the claims
    python perf/grid.py --parts tiny        # those parts whose name has the word, and the claims again

Each part writes its own result files. A part that fails does not keep the others from running.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from report import ROOT, add_results_option, progress

PARTS: Mapping[str, tuple[str, ...]] = {
    "tiny float32": ("bench.py", "--grid", "--shapes", "tiny"),
    "tiny bfloat16": ("bench.py", "--grid", "--shapes", "tiny", "--dtype", "bfloat16"),
    "small float32": ("bench.py", "--grid", "--shapes", "small"),
    "small bfloat16": ("bench.py", "--grid", "--shapes", "small", "--dtype", "bfloat16"),
    "published-0.6b float32": ("bench.py", "--grid", "--shapes", "published-0.6b"),
    "published-0.6b bfloat16": (
        *("bench.py", "--grid", "--shapes", "published-0.6b", "--dtype", "bfloat16"),
        "--int8",
    ),
    "codec": ("codec.py",),
    "limit bfloat16": ("limit.py",),
    "limit float32": ("limit.py", "--dtype", "float32"),
    "limit int8": ("limit.py", "--int8"),
}
CLAIMS = ("claims.py",)


def main() -> None:
    options = parse_options()
    chosen = {name: part for name, part in PARTS.items() if any(word in name for word in options.parts)}
    failed = [name for name, part in chosen.items() if not succeeds(name, part, options.results)]
    run(CLAIMS, options.results)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


def succeeds(name: str, part: tuple[str, ...], results: Path) -> bool:
    began_s = time.monotonic()
    status = run(part, results)
    progress(f"=== {name}: {time.monotonic() - began_s:.0f} s" + (", FAILED" if status else ""))
    return status == 0


def run(part: tuple[str, ...], results: Path) -> int:
    script, *arguments = part
    command = [sys.executable, str(ROOT / "perf" / script), *arguments, "--results", str(results.absolute())]
    return subprocess.run(command, check=False).returncode


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python perf/grid.py", description="Measure everything in parts.")
    parser.add_argument(
        "--parts",
        nargs="+",
        default=[""],
        metavar="WORD",
        help=f"of the names: {', '.join(PARTS)} (default: all)",
    )
    add_results_option(parser)
    return parser.parse_args()


if __name__ == "__main__":
    main()
