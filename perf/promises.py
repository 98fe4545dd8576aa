"""What serving promises: Triton's share, the first audio, a newcomer, a long utterance.

    python perf/promises.py                # small shape, float32

perf/README.md tells how it measures; the report goes to perf/results/.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache

import torch
import torch.nn.functional as F

from checkpoints import SHAPES, build_endless
from claims import claims_section, plain
from contestants import OurEngine, Upstream
from load import MODEL, TEN_SECONDS, TEXT, VOICE, sing
from load import listen as listen_to
from qwen3_tts_client import SpeechClient
from qwen3_tts_engine.launch.machine import num_available_cores
from qwen3_tts_engine.launch.server import Server
from qwen3_tts_engine.model.checkpoint import Checkpoint
from qwen3_tts_engine.request import SpeechRequest
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
from serving import counted, serving

STREAMS = 8
TOGETHER_FRAMES = 63  # of an utterance where several are spoken at once
RUNNING = STREAMS - 1  # when a newcomer comes
JOINS_AT = 20  # frames after the running ones began
CHUNKS_BEFORE = 4  # heard by the running ones before a newcomer comes through Triton
EARLY, LATE = 10, 1000  # frames of a long utterance
AROUND = 5  # frames on either side of each
WARM_UP_FRAMES = 31

# A process of a model is started with these; the engine beside it must be, too.
SERVED_WITH = {"OMP_NUM_THREADS": str(num_available_cores()), "OMP_WAIT_POLICY": "passive"}

METHOD = """
A tritonserver started for this run serves {model} with random weights of shape {shape}, in {dtype}. The
same engine and upstream's `qwen_tts` run in one more process with the server's thread settings; nothing is
asked of one while another is measured. {rounds} rounds, of which every figure is the median, lowest and
highest in parentheses; a share or multiple is taken within a round. Triton's overhead: {streams} callers
start together and speak {frames} frames each. By its metrics it is the time from the first request to the
last sample that was not spent in engine steps, as a share of that spent there; in process it is how much
longer that is than the same utterances take the same engine without Triton, and has in it the client, which
runs on the same cores, and what Triton's threads keep from the engine's. First audio: one caller, {ten_s}
frames, against upstream's whole utterance (nothing can be heard of it before), and against the engine alone
with an utterance of one frame: one prefill, one frame, one frame of the codec. A newcomer: {running}
utterances run; in step {joins} an utterance of one frame joins. Its delay is what this step's language
models take more than the median of the ten before, against prefill and frame of the same utterance alone.
Through Triton: the longest gap between two chunks of any of {running} streams with such a newcomer over
that without, against the newcomer's time to audio from an idle server. A long utterance: the language
models' time for frames {early} ± {around} and {late} ± {around} of one utterance, and the attention of all
layers at both lengths, measured by itself (torch's `scaled_dot_product_attention` with the talker's
dimensions), which explains a part of what is between them.
"""


@dataclass(frozen=True)
class Section:
    """One thing that was measured: its table, and what it says of the claims."""

    title: str
    rows: Sequence[tuple[str, object]]
    findings: dict[str, Spread]

    def markdown(self) -> str:
        return f"## {self.title}\n\n{table(('', ''), self.rows)}"


# --- in the engine's own process --------------------------------------------------------------------------


@cache
def our_engine(shape: str, dtype: str) -> OurEngine:
    engine = OurEngine(build_endless(shape), dtype, "cpu")
    engine.warm_up()
    return engine


@cache
def upstream(shape: str, dtype: str) -> Upstream:
    return Upstream(build_endless(shape), dtype, "cpu")


def words(frames: int, seed: int = 0) -> SpeechRequest:
    return SpeechRequest(TEXT, language="English", speaker=VOICE, seed=seed, max_frames=frames)


def together_s(shape: str, dtype: str, callers: int, frames: int) -> float:
    requests = [words(frames, seed) for seed in range(callers)]
    return our_engine(shape, dtype).speak(requests).total.wall_s


def first_frame_s(shape: str, dtype: str) -> float:
    """One prefill, one frame and one frame of the codec."""
    return our_engine(shape, dtype).speak([words(1)]).total.wall_s


def upstream_whole_s(shape: str, dtype: str, frames: int) -> float:
    return upstream(shape, dtype).speak([words(frames)]).total.wall_s


def newcomer_s(shape: str, dtype: str) -> tuple[float, float]:
    """What a newcomer adds to the step they join, and one prefill and frame alone."""
    engine = our_engine(shape, dtype)
    running = [words(2 * JOINS_AT, seed) for seed in range(RUNNING)]
    _, costs = engine.speak_arriving({0: running, JOINS_AT: [words(1, seed=RUNNING)]})
    usual_s = statistics.median(cost.wall_s for cost in costs[JOINS_AT - 10 : JOINS_AT])
    _, alone = engine.speak_arriving({0: [words(1, seed=RUNNING)]})
    return costs[JOINS_AT].wall_s - usual_s, alone[0].wall_s


def long_utterance_s(shape: str, dtype: str, early: int, late: int) -> tuple[float, float, float]:
    """A frame's cost early, late, and what attention's length explains of the difference."""
    _, costs = our_engine(shape, dtype).speak_arriving({0: [words(late + AROUND)]})
    then, now = (
        statistics.median(cost.wall_s for cost in costs[max(1, at - AROUND) : at + AROUND])
        for at in (early, late)
    )
    return then, now, attention_s(shape, dtype, late) - attention_s(shape, dtype, early)


@torch.inference_mode()
def attention_s(shape: str, dtype: str, length: int, times: int = 200) -> float:
    """The talker's attention over so many positions, all layers."""
    talker = Checkpoint(build_endless(shape)).config.talker
    query, key, value = (
        torch.ones(1, heads, positions, talker.head_dim, dtype=getattr(torch, dtype))
        for heads, positions in (
            (talker.num_attention_heads, 1),
            (talker.num_key_value_heads, length),
            (talker.num_key_value_heads, length),
        )
    )
    started_s = time.perf_counter()
    for _ in range(times):
        F.scaled_dot_product_attention(query, key, value, enable_gqa=True)
    return talker.num_hidden_layers * (time.perf_counter() - started_s) / times


class Beside:
    """The process of the engine and upstream, with the server's thread settings."""

    def __init__(self, shape: str, dtype: str) -> None:
        os.environ.update(SERVED_WITH)  # a spawned process reads them before it loads torch
        self._pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        self._which = (shape, dtype)

    def measure(self, what: Callable[..., object], *arguments: int) -> object:
        return self._pool.submit(what, *self._which, *arguments).result()

    def close(self) -> None:
        self._pool.shutdown()


@contextmanager
def beside(options: argparse.Namespace) -> Iterator[Beside]:
    process = Beside(options.shape, options.dtype)
    try:
        process.measure(first_frame_s)  # loads, warms up
        yield process
    finally:
        process.close()


# --- through Triton ---------------------------------------------------------------------------------------


def overhead(server: Server, tts: SpeechClient, engine: Beside, options: argparse.Namespace) -> Section:
    through_s, in_steps_s, alone_s = [], [], []
    for number in rounds(options, "Triton's overhead"):

        def through_triton() -> None:
            before_s = steps_s(server)
            through_s.append(sing(tts, STREAMS, options.frames).total_s)
            in_steps_s.append(steps_s(server) - before_s)

        def in_process() -> None:
            alone_s.append(engine.measure(together_s, STREAMS, options.frames))

        in_turns(number, through_triton, in_process)
    return Section(
        f"Triton's overhead, {STREAMS} streams of {options.frames} frames",
        [
            ("through Triton, s", Spread.of(through_s)),
            ("of it in engine steps, s", Spread.of(in_steps_s)),
            ("the engine alone, s", Spread.of(alone_s)),
        ],
        {
            "triton, by its metrics": ratios(through_s, in_steps_s, minus=1),
            "triton, in process": ratios(through_s, alone_s, minus=1),
        },
    )


def steps_s(server: Server) -> float:
    """The engine's time in steps, once all of it has been counted."""
    seen = -1.0
    while (now := counted(server, "qwen3_tts_step_seconds_sum", MODEL)) != seen:
        seen = now
        time.sleep(0.1)
    return now


def first_audio(tts: SpeechClient, engine: Beside, options: argparse.Namespace) -> Section:
    heard_s, least_s, upstream_s = [], [], []
    for number in rounds(options, "first audio"):
        in_turns(
            number,
            lambda: heard_s.append(listen_to(tts, 0, options.ten_seconds).first_audio_s),
            lambda: least_s.append(engine.measure(first_frame_s)),
            lambda: upstream_s.append(engine.measure(upstream_whole_s, options.ten_seconds)),
        )
    return Section(
        f"First audio of {options.ten_seconds} frames",
        [
            ("through Triton, ms", Spread.of(1000 * s for s in heard_s)),
            ("prefill, one frame, one codec frame, ms", Spread.of(1000 * s for s in least_s)),
            ("upstream's whole utterance, ms", Spread.of(1000 * s for s in upstream_s)),
        ],
        {
            "first audio": ratios(upstream_s, heard_s),
            "first audio, overhead": ratios(heard_s, least_s),
        },
    )


def newcomer(tts: SpeechClient, engine: Beside, options: argparse.Namespace) -> Section:
    delay_s, least_s, without_s, with_s, alone_s = [], [], [], [], []
    for number in rounds(options, "a newcomer"):
        delayed_s, bound_s = engine.measure(newcomer_s)
        delay_s.append(delayed_s)
        least_s.append(bound_s)
        in_turns(
            number,
            lambda: without_s.append(longest_gap_s(tts, options.frames, has_newcomer=False)),
            lambda: with_s.append(longest_gap_s(tts, options.frames, has_newcomer=True)),
            lambda: alone_s.append(listen_to(tts, RUNNING, 1).first_audio_s),
        )
    growth_s = [longer - usual for longer, usual in zip(with_s, without_s, strict=True)]
    return Section(
        f"A newcomer to {RUNNING} streams",
        [
            ("delay of the step they join, ms", Spread.of(1000 * s for s in delay_s)),
            ("one prefill and one frame, ms", Spread.of(1000 * s for s in least_s)),
            ("longest gap between chunks without, ms", Spread.of(1000 * s for s in without_s)),
            ("with, ms", Spread.of(1000 * s for s in with_s)),
            ("the newcomer alone through Triton, ms", Spread.of(1000 * s for s in alone_s)),
        ],
        {"newcomer": ratios(delay_s, least_s), "newcomer, heard": ratios(growth_s, alone_s)},
    )


def longest_gap_s(tts: SpeechClient, frames: int, has_newcomer: bool) -> float:
    """Between two chunks of any of the running streams, after its first few."""
    has_begun = threading.Event()

    def run(seed: int) -> list[float]:
        arrived_s = []
        with tts.stream(TEXT, VOICE, language="English", seed=seed, max_frames=frames) as speech:
            for _ in speech:
                arrived_s.append(time.perf_counter())
                if seed == 0 and len(arrived_s) == CHUNKS_BEFORE:
                    has_begun.set()
        has_begun.set()  # a short utterance has fewer
        return arrived_s

    with ThreadPoolExecutor(RUNNING) as callers:
        streams = [callers.submit(run, seed) for seed in range(RUNNING)]
        has_begun.wait()
        if has_newcomer:
            listen_to(tts, RUNNING, 1)
        arrivals = [stream.result() for stream in streams]
    return longest_gap(arrivals, CHUNKS_BEFORE)


def longest_gap(arrivals: Sequence[Sequence[float]], after: int) -> float:
    """The longest time between two chunks of any stream that follow its first `after - 1` chunks."""
    return max(
        (now - then for at in arrivals for then, now in zip(at[after - 1 :], at[after:], strict=False)),
        default=0.0,
    )


def long_utterance(engine: Beside, options: argparse.Namespace) -> Section:
    measured = [
        engine.measure(long_utterance_s, options.early, options.late)
        for _ in rounds(options, "a long utterance")
    ]
    return Section(
        "A long utterance",
        [
            (f"frame {options.early}, ms", Spread.of(1000 * early for early, _, _ in measured)),
            (f"frame {options.late}, ms", Spread.of(1000 * late for _, late, _ in measured)),
            ("attention's part of the difference, ms", Spread.of(1000 * why for *_, why in measured)),
        ],
        {"long utterance": Spread.of(unexplained_growth(*costs) for costs in measured)},
    )


def unexplained_growth(early_s: float, late_s: float, explained_s: float) -> float:
    """As a share of the early cost."""
    return (late_s - early_s - explained_s) / early_s


def rounds(options: argparse.Namespace, what: str) -> Iterator[int]:
    for number in range(options.rounds):
        progress(f"{what}, round {number + 1} of {options.rounds}")
        yield number


def in_turns(number: int, *ways: Callable[[], None]) -> None:
    """Each once, in every other round in the opposite order."""
    for way in ways[:: -1 if number % 2 else 1]:
        way()


def ratios(ours: Sequence[float], reference: Sequence[float], minus: float = 0) -> Spread:
    """By round."""
    return Spread.of(a / b - minus for a, b in zip(ours, reference, strict=True))


def main() -> None:
    options = parse_options()
    meter = MachineMeter()
    environment = {
        "QWEN_TTS_CUSTOM_VOICE_MODEL": str(build_endless(options.shape)),
        "MODEL_DTYPE": options.dtype,
    }
    with (
        beside(options) as engine,
        serving([MODEL], environment, log="promises.log") as server,
        SpeechClient(f"127.0.0.1:{server.grpc_port}", timeout_s=300) as tts,
    ):
        sing(tts, STREAMS, WARM_UP_FRAMES)
        sections = [
            overhead(server, tts, engine, options),
            first_audio(tts, engine, options),
            newcomer(tts, engine, options),
            long_utterance(engine, options),
        ]
        provenance = Provenance.of(meter)  # while the server still runs: its time is not the others'
    write_up(sections, options, provenance).publish(options.results)


def write_up(sections: Sequence[Section], options: argparse.Namespace, provenance: Provenance) -> Report:
    measured = {key: figure for section in sections for key, figure in section.findings.items()}
    found = measured if is_as_claimed(options) else {}
    return Report(
        title=f"What serving promises: {options.shape}, {options.dtype}",
        name=f"{device_kind()}-promises-{options.shape}-{options.dtype}",
        method=METHOD.format(
            model=MODEL,
            shape=options.shape,
            dtype=options.dtype,
            rounds=options.rounds,
            streams=STREAMS,
            frames=options.frames,
            ten_s=options.ten_seconds,
            running=RUNNING,
            joins=JOINS_AT,
            early=options.early,
            late=options.late,
            around=AROUND,
        ),
        sections=[
            *filter(None, [claims_section(found)]),
            *(section.markdown() for section in sections),
        ],
        figures={
            "shape": options.shape,
            "dtype": options.dtype,
            "measured": {key: asdict(figure) for key, figure in measured.items()},
            "findings": plain(found),
        },
        provenance=provenance,
    )


def is_as_claimed(options: argparse.Namespace) -> bool:
    """A shorter run shows that everything works, and nothing about the claims."""
    return (options.shape, options.dtype) == ("small", "float32") and not options.short


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python perf/promises.py", description="Measure what serving promises, at the real server."
    )
    parser.add_argument("--shape", choices=SHAPES, default="small", help="default: %(default)s")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rounds", type=at_least(1), default=5, help="default: %(default)s")
    parser.add_argument("--short", action="store_true", help="everything once and briefly, to see it work")
    add_results_option(parser)
    options = parser.parse_args()
    options.frames = WARM_UP_FRAMES if options.short else TOGETHER_FRAMES
    options.ten_seconds = WARM_UP_FRAMES if options.short else TEN_SECONDS
    options.early, options.late = (EARLY, 3 * EARLY) if options.short else (EARLY, LATE)
    return options


if __name__ == "__main__":
    main()
