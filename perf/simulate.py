"""Which scheduling serves listeners best: the engine's scheduler, simulated, with callers who come at random.

    python perf/simulate.py
    python perf/simulate.py --callers 1000 --seeds 5

perf/README.md tells how; the report goes to perf/results/.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from plots import line_plot
from qwen3_tts_engine.chunking import FRAME_S
from qwen3_tts_engine.profile import PROFILES
from report import (
    RESULTS,
    MachineMeter,
    Provenance,
    Report,
    Spread,
    add_results_option,
    at_least,
    progress,
    table,
)
from simulation import POLICIES, Outcome, Simulation, StepCosts, poisson_arrivals, scheduler_of

SLOTS = 16
LOADS = (0.3, 0.5, 0.7, 0.85, 0.95)  # of what 16 slots that never pause can speak
BENCHMARK = "The engine against qwen_tts"  # how the reports begin that say what a step takes
BENCHMARK_PROMPT_TOKENS = 16

# What one H100 took for the 1.7B model elsewhere; not measured by us.
PULL_REQUEST = "pull request 3221 of vllm-project/vllm-omni"
TIMES_REAL_TIME = {1: 8.83, 4: 25.05, 8: 40.56, 32: 85.22}  # by callers at once, all together; from there
NARI = "the report on Nari Qwen3-TTS 1.7B CustomVoice of nari-labs/benchmarks"
FIRST_AUDIO_S = 0.0265  # at one request a second, p95; from there
ASSUMED_CODEC_S, ASSUMED_CODEC_FRAME_S = 0.002, 0.0001  # a call, and a frame of it

METHOD = f"""
The engine's own `Scheduler` with `chunking.py` and `playback.py`, on a clock of its own; talker and codec
are replaced by what they take, so a busy machine changes nothing. Poisson arrivals; utterances of 1 to 20 s,
5 s on average, lognormal; prompts of 10 to 60 tokens; {SLOTS} slots, a queue without an end. In each of
{{seeds}} runs the same {{callers}} callers come to every policy. Figures are medians over the runs, lowest
and highest in parentheses. Load is the audio asked for in a second as a share of what {SLOTS} slots that
never pause can speak. First audio is from the request to the first chunk. An underrun is a chunk handed out
after its listener had nothing left to play; silence is how long they then sat there, a minute of audio.
"ramp alone" hands out 1, 2, 4, 8, then 12 frames whatever a listener has left, and all that are due at the
step's end; "12 frames" waits for 12 from the first chunk on. Steps on the CPU take what {{benchmark}}
measured, taken apart into a part for each call and a part for each row by its smallest and its largest
batch. Steps on the H100 are a what-if and nothing that we measured: a frame of 1, 4, 8 and 32 callers takes
what {PULL_REQUEST} reports (a straight line through them, less the codec, which is assumed to take
{1000 * ASSUMED_CODEC_S:g} ms a call and {1000 * ASSUMED_CODEC_FRAME_S:g} ms a frame); a prompt takes what is
left of the {1000 * FIRST_AUDIO_S:g} ms to the first audio in {NARI}.
"""


def main() -> None:
    options = parse_options()
    meter = MachineMeter()
    benchmark = options.benchmark or latest_benchmark()
    devices = [*cpu_costs(benchmark), h100_costs()]
    results = [
        measured(costs, load, policy, options.callers, options.seeds)
        for costs in devices
        for load in LOADS
        for policy in POLICIES
    ]
    report(devices, results, benchmark, options, Provenance.of(meter)).publish(options.results)


# --- what a step takes ------------------------------------------------------------------------------------


def latest_benchmark() -> Path:
    found = [
        path for path in RESULTS.glob("*.json") if json.loads(path.read_text())["title"].startswith(BENCHMARK)
    ]
    return max(found)


def cpu_costs(benchmark: Path) -> list[StepCosts]:
    """One for each shape in a report of `bench.py`."""
    return [_shape_costs(shape) for shape in json.loads(benchmark.read_text())["shapes"]]


def _is_plain(entry: Mapping[str, Any]) -> bool:
    """Of the engine as it is, with utterances of one length."""
    return entry["who"] == "engine" and entry.get("lengths", "equal lengths") == "equal lengths"


def _shape_costs(shape: Mapping[str, Any]) -> StepCosts:
    """Two batches make two equations for each pair of a constant and a part that grows with the rows."""
    ours = {entry["batch"]: entry for entry in shape["milliseconds"] if _is_plain(entry)}
    alone, many = min(ours), max(ours)
    frames = shape["frames"]
    calls = _num_chunks(frames)

    def seconds(batch: int, measure: str) -> float:
        return ours[batch][measure]["median"] / 1000

    def step(batch: int) -> float:
        return batch * seconds(batch, "language models after the first frame")

    frame_s, frame_row_s = _line({batch: step(batch) for batch in (alone, many)})
    codec_s, codec_row_s = _line({b: b * frames * seconds(b, "codec") / calls for b in (alone, many)})
    codec_frame_s = codec_row_s * calls / frames

    def prefill(batch: int) -> float:
        first_chunk_s = step(batch) + codec_s + batch * codec_frame_s
        return max(0.0, seconds(batch, "first audio (ms, not per frame)") - first_chunk_s)

    prefill_s, prompt_s = _line({batch: prefill(batch) for batch in (alone, many)})
    return StepCosts(
        name=f"two CPU cores, {shape['shape']}",
        prefill_s=max(0.0, prefill_s),
        prefill_token_s=prompt_s / BENCHMARK_PROMPT_TOKENS,
        frame_s=frame_s,
        frame_row_s=frame_row_s,
        codec_s=codec_s,
        codec_frame_s=codec_frame_s,
    )


def _num_chunks(frames: int) -> int:
    ramp, chunks = PROFILES["balanced"].ramp, 0
    while frames > 0:
        frames -= ramp[min(chunks, len(ramp) - 1)]
        chunks += 1
    return chunks


def h100_costs() -> StepCosts:
    steps_s = {callers: callers * FRAME_S / speed for callers, speed in TIMES_REAL_TIME.items()}
    frame_s, row_s = _line(steps_s)
    frame_row_s = row_s - (ASSUMED_CODEC_S / PROFILES["balanced"].ramp[-1] + ASSUMED_CODEC_FRAME_S)
    first_chunk_s = frame_s + frame_row_s + ASSUMED_CODEC_S + ASSUMED_CODEC_FRAME_S
    return StepCosts(
        name="what-if H100, 1.7B",
        prefill_s=FIRST_AUDIO_S - first_chunk_s,
        prefill_token_s=0.0,
        frame_s=frame_s,
        frame_row_s=frame_row_s,
        codec_s=ASSUMED_CODEC_S,
        codec_frame_s=ASSUMED_CODEC_FRAME_S,
    )


def _line(points: Mapping[int, float]) -> tuple[float, float]:
    """y(0) and the slope of the straight line that fits y by x best."""
    slope, start = np.polyfit(list(points), list(points.values()), 1)
    return float(start), float(slope)


# --- what listeners hear ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """What one policy made of one load, over all seeds."""

    device: str
    load: float
    policy: str
    first_audio_p50_s: Spread
    first_audio_p95_s: Spread
    underruns: Spread  # an utterance
    ran_dry: Spread  # share of listeners
    silence_s: Spread  # a minute of audio
    audio_s_per_s: Spread
    codec_calls: Spread  # an utterance


def measured(costs: StepCosts, load: float, policy: str, callers: int, seeds: int) -> Result:
    rate = load * costs.audio_s_per_s(SLOTS)
    outcomes = [
        Simulation(scheduler_of(policy, SLOTS), costs, poisson_arrivals(callers, rate, seed)).run()
        for seed in range(seeds)
    ]
    progress(f"{costs.name}, load {load:.0%}, {policy}")
    return Result(costs.name, load, policy, **_spreads(map(_figures, outcomes)))


def _figures(outcome: Outcome) -> dict[str, float]:
    heard = outcome.listeners
    first = [listener.first_s for listener in heard]
    gaps = [gap for listener in heard for gap in listener.gaps_s]
    audio_s = outcome.frames * FRAME_S
    return {
        "first_audio_p50_s": float(np.percentile(first, 50)),
        "first_audio_p95_s": float(np.percentile(first, 95)),
        "underruns": len(gaps) / len(heard),
        "ran_dry": sum(bool(listener.gaps_s) for listener in heard) / len(heard),
        "silence_s": 60 * sum(gaps) / audio_s,
        "audio_s_per_s": audio_s / outcome.took_s,
        "codec_calls": outcome.codec_calls / len(heard),
    }


def _spreads(figures: Iterable[Mapping[str, float]]) -> dict[str, Spread]:
    runs = list(figures)
    return {name: Spread.of(run[name] for run in runs) for name in runs[0]}


# --- the report -------------------------------------------------------------------------------------------


def report(
    devices: Sequence[StepCosts],
    results: Sequence[Result],
    benchmark: Path,
    options: argparse.Namespace,
    provenance: Provenance,
) -> Report:
    return Report(
        title="Scheduling policies, simulated",
        name="simulation",
        method=METHOD.format(seeds=options.seeds, callers=options.callers, benchmark=benchmark.name),
        sections=[section(costs, results) for costs in devices],
        figures={"costs": [asdict(it) for it in devices], "results": [asdict(it) for it in results]},
        provenance=provenance,
        plots={f"First audio, {costs.name}": first_audio_plot(costs, results) for costs in devices},
    )


COLUMNS = (
    "load",
    "policy",
    "first audio p50, ms",
    "p95, ms",
    "underruns an utterance",
    "listeners who ran dry",
    "silence, s a minute",
    "audio s per s",
    "codec calls an utterance",
)


def section(costs: StepCosts, results: Iterable[Result]) -> str:
    rows = [row(result) for result in results if result.device == costs.name]
    return f"## {costs.name}\n\n{steps(costs)}\n\n{table(COLUMNS, rows)}"


def steps(costs: StepCosts) -> str:
    codec = f"{1000 * costs.codec_s:.3g} ms and {1000 * costs.codec_frame_s:.2g} ms a frame"
    prefill = f"{1000 * costs.prefill_s:.3g} ms and {1000 * costs.prefill_token_s:.2g} ms a token"
    frame = f"{1000 * costs.frame_s:.3g} ms and {1000 * costs.frame_row_s:.2g} ms a row"
    most = costs.audio_s_per_s(SLOTS)
    return (
        f"A call that reads prompts takes {prefill}, a frame {frame}, a call of the codec {codec};"
        f" {SLOTS} slots speak at most {most:.3g} s of audio a second."
    )


def row(result: Result) -> tuple[object, ...]:
    return (
        f"{result.load:.0%}",
        result.policy,
        _in_ms(result.first_audio_p50_s),
        _in_ms(result.first_audio_p95_s),
        result.underruns,
        f"{result.ran_dry.median:.1%}",
        _to_hundredths(result.silence_s),
        result.audio_s_per_s,
        result.codec_calls,
    )


def _to_hundredths(spread: Spread) -> str:
    """Of what may be next to nothing, and is then nothing."""
    return f"{spread.median:.2f} ({spread.low:.2f}–{spread.high:.2f})"


def _in_ms(seconds: Spread) -> Spread:
    return Spread(1000 * seconds.median, 1000 * seconds.low, 1000 * seconds.high)


def first_audio_plot(costs: StepCosts, results: Iterable[Result]) -> str:
    ours = [result for result in results if result.device == costs.name]
    lines = {
        policy: {100 * it.load: _in_ms(it.first_audio_p95_s) for it in ours if it.policy == policy}
        for policy in POLICIES
    }
    return line_plot(lines, "load, %", "first audio p95, ms", is_logarithmic=True)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python perf/simulate.py", description="Compare scheduling policies by simulation."
    )
    parser.add_argument("--callers", type=at_least(1), default=250, help="of a run (default: %(default)s)")
    parser.add_argument("--seeds", type=at_least(1), default=3, help="runs (default: %(default)s)")
    parser.add_argument(
        "--benchmark", type=Path, help="JSON of bench.py (default: the latest in perf/results)"
    )
    add_results_option(parser)
    return parser.parse_args()


if __name__ == "__main__":
    main()
