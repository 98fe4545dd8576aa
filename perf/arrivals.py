"""An open loop at the real Triton server: callers come when they come, whether or not others are done.

    python perf/arrivals.py
    python perf/arrivals.py --shape small --duration-s 60

perf/README.md tells how it measures; the report goes to perf/results/.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

import numpy as np

from checkpoints import SHAPES, build_endless
from crowd import silence_s
from load import MODEL, TEXT, VOICE, sing
from plots import line_plot, once
from qwen3_tts_client import Overloaded, SpeechClient
from report import (
    MachineMeter,
    Provenance,
    Report,
    add_results_option,
    device_kind,
    progress,
    table,
)
from serving import serving

FRAME_S = 0.08
FRACTIONS = (0.25, 0.5, 0.75, 0.9, 1.1)  # of the capacity
CAPACITY_CALLERS = 16  # as many as the engine has slots
MEAN_FRAMES = 63  # 5 s
SEED = 5
MOST_CALLERS = 256  # threads; whoever comes when all are taken would be late, and counts from when they came
PERCENTILES = (50, 95, 99)

METHOD = """
A tritonserver started for this run serves {model} with random weights of shape {shape}, which never end an
utterance by themselves. Its capacity is what {callers} callers who start together get, in seconds of audio
per second, the better of two rounds of {frames} frames each. Then callers come at random (a Poisson
process, the same in every run) for {duration_s:g} s at each of some fractions of the capacity; each asks
for an utterance of a quarter to seven quarters of {frames} frames, all lengths equally likely, on a
connection that all share. First audio and the whole count from the moment a caller was to come, not from
when a thread was free to send. A listener plays what has come from the first chunk on, without a buffer; an
underrun is an utterance in which they had to wait for a chunk, and silence is how long they waited.
Rejected is who was told that the server is overloaded. The client runs on the server's cores.
"""


@dataclass(frozen=True)
class Arrival:
    """Somebody who will come."""

    at_s: float
    frames: int
    seed: int


@dataclass(frozen=True)
class Heard:
    """One utterance, from the moment its caller was to come.

    Args:
        chunks: when each arrived, and the seconds of audio in it.
    """

    chunks: Sequence[tuple[float, float]]
    was_rejected: bool = False

    @property
    def first_audio_s(self) -> float:
        return self.chunks[0][0]

    @property
    def whole_s(self) -> float:
        return self.chunks[-1][0]

    @property
    def audio_s(self) -> float:
        return sum(audio_s for _, audio_s in self.chunks)


@dataclass(frozen=True)
class Load:
    """One rate, as its callers lived it."""

    fraction: float
    rate_per_s: float
    callers: int
    rejected: int
    underruns: int
    silence_s: float
    first_audio_s: Sequence[float]  # at PERCENTILES
    whole_s: Sequence[float]
    audio_s_per_s: float

    @classmethod
    def of(cls, fraction: float, rate_per_s: float, heard: Sequence[Heard], took_s: float) -> Load:
        served = [h for h in heard if not h.was_rejected]
        waits = [silence_s(h.chunks) for h in served]
        return cls(
            fraction,
            rate_per_s,
            callers=len(heard),
            rejected=len(heard) - len(served),
            underruns=sum(wait > 0 for wait in waits),
            silence_s=sum(waits),
            first_audio_s=percentiles([h.first_audio_s for h in served]),
            whole_s=percentiles([h.whole_s for h in served]),
            audio_s_per_s=sum(h.audio_s for h in served) / took_s,
        )


def percentiles(values: Sequence[float]) -> list[float]:
    return np.percentile(values, PERCENTILES).tolist() if values else [float("nan")] * len(PERCENTILES)


def poisson(
    rate_per_s: float, duration_s: float, mean_frames: int, dice: np.random.Generator
) -> list[Arrival]:
    """Who comes within the time; nobody at a time of their own choosing."""
    arrivals: list[Arrival] = []
    at_s = 0.0
    while (at_s := at_s + dice.exponential(1 / rate_per_s)) < duration_s:
        frames = int(dice.integers(max(1, mean_frames // 4), 7 * mean_frames // 4 + 1))
        arrivals.append(Arrival(at_s, frames, seed=len(arrivals)))
    return arrivals


def main() -> None:
    options = parse_options()
    meter = MachineMeter()
    checkpoint = {"QWEN_TTS_CUSTOM_VOICE_MODEL": str(build_endless(options.shape))}
    with (
        serving([MODEL], checkpoint, log="arrivals.log") as server,
        SpeechClient(f"127.0.0.1:{server.grpc_port}", timeout_s=300) as tts,
    ):
        capacity = max(sing(tts, CAPACITY_CALLERS, options.frames).audio_s_per_s for _ in range(2))
        loads = list(play(tts, capacity, options))
        provenance = Provenance.of(meter)  # while the server still runs: its time is not the others'
    write_up(capacity, loads, options, provenance).publish(options.results)


def play(tts: SpeechClient, capacity: float, options: argparse.Namespace) -> Iterator[Load]:
    for fraction in options.fractions:
        rate_per_s = fraction * capacity / (options.frames * FRAME_S)
        progress(f"{fraction:.0%} of {capacity:.3g} s of audio per second")
        dice = np.random.default_rng(SEED)
        arrivals = poisson(rate_per_s, options.duration_s, options.frames, dice)
        began_s = time.perf_counter()
        heard = serve(tts, arrivals)
        yield Load.of(fraction, rate_per_s, heard, time.perf_counter() - began_s)


def serve(tts: SpeechClient, arrivals: Sequence[Arrival]) -> list[Heard]:
    """Let them all come when they come; returns when the last one has heard all."""
    with ThreadPoolExecutor(MOST_CALLERS) as pool:
        began_s = time.perf_counter()
        futures = []
        for arrival in arrivals:
            time.sleep(max(0.0, began_s + arrival.at_s - time.perf_counter()))
            futures.append(pool.submit(listen, tts, arrival, began_s + arrival.at_s))
        return [future.result() for future in futures]


def listen(tts: SpeechClient, arrival: Arrival, came_at_s: float) -> Heard:
    chunks = []
    try:
        with tts.stream(
            TEXT, VOICE, language="English", seed=arrival.seed, max_frames=arrival.frames
        ) as speech:
            for samples in speech:
                if len(samples):
                    chunks.append((time.perf_counter() - came_at_s, len(samples) / speech.sample_rate))
    except Overloaded:
        return Heard([], was_rejected=True)
    return Heard(chunks)


# --- the report -------------------------------------------------------------------------------------------


def write_up(
    capacity: float, loads: Sequence[Load], options: argparse.Namespace, provenance: Provenance
) -> Report:
    return Report(
        title=f"Callers who come at random: {options.shape}",
        name=f"{device_kind()}-arrivals-{options.shape}",
        method=METHOD.format(
            model=MODEL,
            shape=options.shape,
            callers=CAPACITY_CALLERS,
            frames=options.frames,
            duration_s=options.duration_s,
        ),
        sections=[
            f"Capacity: {capacity:.3g} s of audio per second.",
            table(COLUMNS, [row(load) for load in loads]),
        ],
        figures={
            "shape": options.shape,
            "capacity_audio_s_per_s": capacity,
            "percentiles": PERCENTILES,
            "loads": [asdict(load) for load in loads],
        },
        provenance=provenance,
        plots={"First audio by load": first_audio_plot(loads)},
    )


COLUMNS = (
    "of the capacity",
    "callers per s",
    "callers",
    "rejected",
    "first audio p50, ms",
    "p95, ms",
    "p99, ms",
    "whole p50, s",
    "p95, s",
    "p99, s",
    "underruns",
    "silence, s",
    "audio s per s",
)


def row(load: Load) -> tuple[object, ...]:
    return (
        f"{load.fraction:.0%}",
        f"{load.rate_per_s:.3g}",
        load.callers,
        load.rejected,
        *(f"{1000 * value:.0f}" for value in load.first_audio_s),
        *(f"{value:.3g}" for value in load.whole_s),
        load.underruns,
        f"{load.silence_s:.3g}",
        f"{load.audio_s_per_s:.3g}",
    )


def first_audio_plot(loads: Sequence[Load]) -> str:
    lines = {
        f"p{percentile}": {load.fraction: once(1000 * load.first_audio_s[i]) for load in loads}
        for i, percentile in enumerate(PERCENTILES)
    }
    return line_plot(lines, "share of the capacity", "first audio, ms", is_logarithmic=True)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python perf/arrivals.py", description="Measure callers who come at random at the real server."
    )
    parser.add_argument("--shape", choices=SHAPES, default="tiny", help="of the server to start")
    parser.add_argument("--fractions", nargs="+", type=float, default=FRACTIONS, help="of the capacity")
    parser.add_argument("--duration-s", type=float, default=60.0, help="of each (default: %(default)s)")
    parser.add_argument("--frames", type=int, default=MEAN_FRAMES, help="on average (default: %(default)s)")
    add_results_option(parser)
    return parser.parse_args()


if __name__ == "__main__":
    main()
