"""Whether a server that has spoken for long is as small as one that has just begun.

    python perf/memory.py
    python perf/memory.py --requests 10000 --callers 16

perf/README.md tells how it measures; the report goes to perf/results/.
"""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

import psutil

from claims import plain
from plots import line_plot
from qwen3_tts_client import SpeechClient
from qwen3_tts_engine.engine import IDLE_S
from qwen3_tts_engine.launch.server import Server
from report import (
    MachineMeter,
    Provenance,
    Report,
    Spread,
    add_results_option,
    at_least,
    device_kind,
    progress,
    table,
)
from serving import serving

MODEL = "qwen3_tts_custom_voice"
WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
MAX_FRAMES = 40
SETTLED_AFTER = 100  # requests
MOST_GROWTH = 0.02  # from then on
CLAIMED_AFTER = 1000  # a shorter run says nothing about the claim
LOOKS = 20
REST_S = 2 * IDLE_S

METHOD = """
A tritonserver started for this run serves {model} with random weights of the tiny shape. {callers} callers
at a time ask for {requests} utterances of 1 to 12 words and at most {frames} frames; every tenth leaves after
the first chunk. Resident memory is that of the server and of the model's process together, read after
{rest:g} s in which nobody spoke: the engine gives back what it freed after {idle:g} s. Growth is counted
from request {settled} on.
"""


@dataclass(frozen=True)
class Look:
    """Resident memory after so many requests."""

    requests: int
    server_mb: float
    model_mb: float

    @property
    def total_mb(self) -> float:
        return self.server_mb + self.model_mb


def main() -> None:
    options = parse_options()
    meter = MachineMeter()
    with serving([MODEL], {}, "memory.log") as server, SpeechClient(f"127.0.0.1:{server.grpc_port}") as tts:
        looks = watch(server, tts, options)
    report(looks, options, Provenance.of(meter)).publish(options.results)


def watch(server: Server, tts: SpeechClient, options: argparse.Namespace) -> list[Look]:
    """Look before the first request, after the settling ones, and so often until the last."""
    rest = options.requests - SETTLED_AFTER
    looks, asked = [look(server, 0)], 0
    for until in (SETTLED_AFTER + rest * i // (LOOKS - 1) for i in range(LOOKS)):
        with ThreadPoolExecutor(options.callers) as callers:
            list(callers.map(lambda i: speak(tts, i), range(asked, until)))
        asked = until
        time.sleep(REST_S)
        looks.append(look(server, asked))
        progress(f"{asked} requests: {looks[-1].total_mb:.1f} MB")
    return looks


def speak(tts: SpeechClient, i: int) -> None:
    text = " ".join(WORDS[: 1 + i % len(WORDS)]) + "."
    with tts.stream(text, "ryan", language="English", seed=i, max_frames=MAX_FRAMES) as speech:
        if i % 10 == 9:
            next(speech)
        else:
            speech.read()


def look(server: Server, requests: int) -> Look:
    process = psutil.Process(server.pid)
    models = process.children(recursive=True)
    return Look(requests, resident_mb(process), sum(resident_mb(model) for model in models))


def resident_mb(process: psutil.Process) -> float:
    return float(process.memory_info().rss / 1e6)


def growth(looks: list[Look]) -> float:
    """Of the last look over the settled one."""
    return looks[-1].total_mb / looks[1].total_mb - 1


def report(looks: list[Look], options: argparse.Namespace, provenance: Provenance) -> Report:
    rows = [(it.requests, f"{it.server_mb:.1f}", f"{it.model_mb:.1f}", f"{it.total_mb:.1f}") for it in looks]
    outcome = "reached" if growth(looks) <= MOST_GROWTH else "**not reached**"
    verdict = (
        f"From {looks[1].requests} to {looks[-1].requests} requests: {growth(looks):+.2%}."
        f" At most {MOST_GROWTH:+.0%}: {outcome}."
    )
    return Report(
        title=f"Memory over {looks[-1].requests} requests",
        name=f"{device_kind()}-memory-tiny",
        method=METHOD.format(
            model=MODEL,
            callers=options.callers,
            requests=looks[-1].requests,
            frames=MAX_FRAMES,
            settled=SETTLED_AFTER,
            rest=REST_S,
            idle=IDLE_S,
        ),
        sections=[verdict, table(("requests", "server, MB", "model, MB", "together, MB"), rows)],
        figures={
            "looks": [asdict(it) for it in looks],
            "growth": growth(looks),
            "findings": plain(
                {"memory growth": Spread.of([growth(looks)])} if options.requests >= CLAIMED_AFTER else {}
            ),
        },
        provenance=provenance,
        plots={"Resident memory by requests": memory_plot(looks)},
    )


def memory_plot(looks: list[Look]) -> str:
    lines = {
        "model": {look.requests: Spread.of([look.model_mb]) for look in looks},
        "server": {look.requests: Spread.of([look.server_mb]) for look in looks},
    }
    return line_plot(lines, "requests", "resident memory, MB")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python perf/memory.py", description="Watch memory over many requests."
    )
    parser.add_argument(
        "--requests", type=at_least(SETTLED_AFTER + 1), default=1000, help="default: %(default)s"
    )
    parser.add_argument("--callers", type=at_least(1), default=8, help="at a time (default: %(default)s)")
    add_results_option(parser)
    return parser.parse_args()


if __name__ == "__main__":
    main()
