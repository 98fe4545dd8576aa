"""Callers who start together at the real Triton server: what each waits for, and what they get done.

    python perf/load.py
    python perf/load.py --url localhost:8001 --callers 1 8 32

perf/README.md tells how it measures; the report goes to perf/results/.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import numpy as np

from checkpoints import SHAPES, build_endless
from plots import line_plot, once
from qwen3_tts_client import SpeechClient
from report import (
    MachineMeter,
    Provenance,
    Report,
    Spread,
    add_results_option,
    device_kind,
    progress,
    table,
)
from serving import serving

MODEL = "qwen3_tts_custom_voice"
TEXT = "Good morning. The first words are on their way while the last ones are still being made."
VOICE = "ryan"
TEN_SECONDS = 125  # frames
FIRST_CHUNK_BEFORE = 0.10  # of a ten-second utterance's total time
WARM_UP_FRAMES = 31  # the first five chunks

METHOD = """
{server}. Each of N callers is a thread of one client process on the same machine; they share a connection. In
each of {rounds} rounds, every other one in the opposite order, and for every N in turn, N callers start
together and each speaks one utterance of {frames} frames ({audio_s:g} s of audio) with a seed of its own.
"Total" is from the first request sent to the last sample received; "times one caller" is taken within a
round. Figures are medians with the lowest and the highest in parentheses: total, times one caller and audio
per second over the rounds, the rest over all utterances of all rounds. First audio is from sending a request
to receiving its first samples, the first chunk's share is that part of the time to the last sample, and the
real-time factor is the time to the last sample per second of audio. Others are everybody but the client and
the server it started.
"""


@dataclass(frozen=True)
class Heard:
    """One utterance, as its caller lived it."""

    sent_at_s: float
    finished_at_s: float
    first_audio_s: float
    audio_s: float

    @property
    def total_s(self) -> float:
        return self.finished_at_s - self.sent_at_s

    @property
    def first_chunk_share(self) -> float:
        return self.first_audio_s / self.total_s

    @property
    def real_time_factor(self) -> float:
        return self.total_s / self.audio_s


@dataclass(frozen=True)
class Chorus:
    """Utterances that started together."""

    heard: Sequence[Heard]

    @property
    def total_s(self) -> float:
        return max(h.finished_at_s for h in self.heard) - min(h.sent_at_s for h in self.heard)

    @property
    def audio_s_per_s(self) -> float:
        return sum(h.audio_s for h in self.heard) / self.total_s


Round = Mapping[int, Chorus]  # by number of callers


@dataclass(frozen=True)
class Load:
    """N callers, over all rounds."""

    callers: int
    total_s: Spread
    times_one_caller: Spread
    first_audio_p50_s: float
    first_audio_p95_s: float
    first_chunk_share: Spread
    real_time_factor: Spread
    audio_s_per_s: Spread

    @classmethod
    def of(cls, callers: int, rounds: Sequence[Round]) -> Load:
        choruses = [played[callers] for played in rounds]
        heard = [h for chorus in choruses for h in chorus.heard]
        p50, p95 = np.percentile([h.first_audio_s for h in heard], [50, 95])
        return cls(
            callers,
            total_s=Spread.of(chorus.total_s for chorus in choruses),
            times_one_caller=Spread.of(played[callers].total_s / played[1].total_s for played in rounds),
            first_audio_p50_s=float(p50),
            first_audio_p95_s=float(p95),
            first_chunk_share=Spread.of(h.first_chunk_share for h in heard),
            real_time_factor=Spread.of(h.real_time_factor for h in heard),
            audio_s_per_s=Spread.of(chorus.audio_s_per_s for chorus in choruses),
        )


def main() -> None:
    options = parse_options()
    meter = MachineMeter()
    with server(options) as url, SpeechClient(url, timeout_s=options.timeout_s) as tts:
        play(tts, options.callers[-1:], WARM_UP_FRAMES)
        rounds = [play(tts, callers, options.max_frames) for callers in orders(options)]
        provenance = Provenance.of(meter)  # while the server still runs: its time is not the others'
    loads = [Load.of(callers, rounds) for callers in options.callers]
    write_up(loads, options, provenance).publish(options.results)


@contextmanager
def server(options: argparse.Namespace) -> Iterator[str]:
    """The gRPC address of the server asked for, or of one started for this."""
    if options.url:
        yield options.url
        return
    checkpoint = {"QWEN_TTS_CUSTOM_VOICE_MODEL": str(build_endless(options.shape))}
    with serving([MODEL], checkpoint, log="load.log") as started:
        yield f"127.0.0.1:{started.grpc_port}"


def orders(options: argparse.Namespace) -> Iterator[list[int]]:
    for i in range(options.rounds):
        progress(f"round {i + 1} of {options.rounds}")
        yield options.callers[:: -1 if i % 2 else 1]


def play(tts: SpeechClient, callers: Sequence[int], max_frames: int) -> Round:
    return {n: sing(tts, n, max_frames) for n in callers}


def sing(tts: SpeechClient, callers: int, max_frames: int) -> Chorus:
    ready = threading.Barrier(callers)

    def speak(seed: int) -> Heard:
        ready.wait()
        return listen(tts, seed, max_frames)

    with ThreadPoolExecutor(callers) as pool:
        return Chorus(list(pool.map(speak, range(callers))))


def listen(tts: SpeechClient, seed: int, max_frames: int) -> Heard:
    sent_at_s = time.perf_counter()
    with tts.stream(TEXT, VOICE, language="English", seed=seed, max_frames=max_frames) as speech:
        audio = speech.read()
        finished_at_s = time.perf_counter()
    if audio.num_frames != max_frames:
        raise SystemExit(
            f"seed {seed} ended after {audio.num_frames} of {max_frames} frames, and utterances of different"
            " lengths cannot be compared; lower --max-frames"
        )
    return Heard(sent_at_s, finished_at_s, speech.time_to_first_audio_s or 0.0, audio.duration_s)


def write_up(loads: Sequence[Load], options: argparse.Namespace, provenance: Provenance) -> Report:
    whom = "server" if options.url else options.shape
    parts = ["load", whom] if options.url else [device_kind(), "load", whom]
    return Report(
        title=f"Callers who start together: {whom}",
        name="-".join(parts),
        method=method(options),
        sections=[table(COLUMNS, [row(load) for load in loads]), *verdict(loads, options.max_frames)],
        figures={"max_frames": options.max_frames, "loads": [asdict(load) for load in loads]},
        provenance=provenance,
        plots={"First audio by callers": first_audio_plot(loads)},
    )


def first_audio_plot(loads: Sequence[Load]) -> str:
    lines = {
        "half of the callers": {load.callers: once(1000 * load.first_audio_p50_s) for load in loads},
        "95 % of them": {load.callers: once(1000 * load.first_audio_p95_s) for load in loads},
    }
    return line_plot(lines, "callers who start together", "first audio, ms")


def method(options: argparse.Namespace) -> str:
    ours = f"A tritonserver started for this run serves {MODEL} with random weights of shape {options.shape}"
    return METHOD.format(
        server="The server was running already" if options.url else ours,
        frames=options.max_frames,
        audio_s=options.max_frames * 0.08,
        rounds=options.rounds,
    )


COLUMNS = (
    "callers",
    "total, s",
    "times one caller",
    "first audio p50, ms",
    "p95, ms",
    "first chunk, share of total",
    "real-time factor",
    "audio s per s",
)


def row(load: Load) -> tuple[object, ...]:
    return (
        load.callers,
        load.total_s,
        load.times_one_caller,
        f"{1000 * load.first_audio_p50_s:.0f}",
        f"{1000 * load.first_audio_p95_s:.0f}",
        load.first_chunk_share,
        load.real_time_factor,
        load.audio_s_per_s,
    )


def verdict(loads: Sequence[Load], max_frames: int) -> list[str]:
    """The target speaks of a ten-second utterance; other lengths are not judged."""
    if max_frames != TEN_SECONDS:
        return []
    late = [str(load.callers) for load in loads if load.first_chunk_share.high >= FIRST_CHUNK_BEFORE]
    outcome = f"**not reached** with {', '.join(late)} callers" if late else "reached"
    return [f"First chunk before {FIRST_CHUNK_BEFORE:.0%} of the total time in every utterance: {outcome}."]


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python perf/load.py", description="Measure callers who start together at the real server."
    )
    parser.add_argument("--url", help="host:port of a running server's gRPC (default: start one)")
    parser.add_argument("--shape", choices=SHAPES, default="tiny", help="of the server to start")
    parser.add_argument("--callers", nargs="+", type=int, default=[1, 2, 4, 8, 16])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--max-frames", type=int, default=TEN_SECONDS, help="default: %(default)s")
    parser.add_argument(
        "--timeout-s", type=float, default=120.0, help="for each chunk (default: %(default)s)"
    )
    add_results_option(parser)
    options = parser.parse_args()
    options.callers = sorted({1, *options.callers})  # one caller is what the others are compared with
    return options


if __name__ == "__main__":
    main()
