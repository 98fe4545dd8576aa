"""The long form of these tests: inputs that no run has tried before, many of them, and how many there were.

    python tests/fuzz/campaign.py [--times 20] [--guided-runs 20000] [-- pytest's arguments]

Then, where there is atheris (Linux on x86-64), it steers more of them by the code they reach. What fails says
how to try the same input again.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FOLDER = Path(__file__).parent
GUIDED = (
    *("names", "mixes", "entries", "objects", "archives", "keys"),
    *("bodies", "messages", "recordings", "ends", "urls", "sentences"),
)


def main() -> int:
    args = parsed()
    begin_s = time.monotonic()
    failed, num_inputs = drawn(args.times, args.pytest)
    if args.guided_runs and importlib.util.find_spec("atheris"):
        for target in GUIDED:
            failed |= guided(target, args.guided_runs)
            num_inputs += args.guided_runs
    elif args.guided_runs:
        say("atheris is not installed: no inputs were steered by coverage")
    say(f"{num_inputs} inputs in {(time.monotonic() - begin_s) / 60:.1f} min: {'FAILED' if failed else 'ok'}")
    return int(failed)


def drawn(times: int, arguments: list[str]) -> tuple[bool, int]:
    """Whether hypothesis found a failure, and among how many inputs."""
    command = [sys.executable, "-m", "pytest", str(FOLDER), *arguments]
    environment = {**os.environ, "FUZZ_TIMES": str(times)}
    run = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert run.stdout
    num_inputs = 0
    for line in run.stdout:
        sys.stdout.write(line)
        sys.stdout.flush()
        if counted := re.match(r"fuzzed +(\d+) ", line):
            num_inputs += int(counted[1])
    return run.wait() != 0, num_inputs


def guided(target: str, num_runs: int, seed: int = 0) -> bool:
    """Whether atheris found a failure; 0 is another seed each time."""
    command = [sys.executable, str(FOLDER / "guided.py"), target, str(num_runs), str(seed)]
    with tempfile.TemporaryDirectory() as folder:  # where libFuzzer leaves what it finds
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    failed = done.returncode != 0
    say(f"steered {num_runs:>6} {target}{': FAILED' if failed else ''}")
    if failed:
        say(done.stdout[-4000:] + done.stderr[-4000:])
    return failed


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--times", type=int, default=20, help="as many inputs as CI has (20)")
    parser.add_argument("--guided-runs", type=int, default=20_000, help="of each target for atheris (20000)")
    parser.add_argument("pytest", nargs="*", help="after --, for pytest")
    return parser.parse_args()


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")


if __name__ == "__main__":
    sys.exit(main())
