"""Our engine against upstream's `qwen_tts` on the same random weights: `make bench`.

    make bench ARGS="--shapes tiny --rounds 3"

perf/README.md tells how it measures; the report goes to perf/results/.
"""

from __future__ import annotations

import argparse
import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median

import numpy as np
import torch

from checkpoints import SHAPES, build_endless
from contestants import Contestant, OurEngine, Spoken, Upstream
from qwen3_tts_engine.launcher import num_available_cores
from qwen3_tts_engine.request import FRAME_SAMPLES, SpeechRequest
from report import MachineMeter, Provenance, Report, Spread, progress, table

TEXT = "Good morning."
BATCHES = (1, 8)
WARM_UP_FRAMES = 3
SAMPLE_TOLERANCE = 1e-3  # of full scale; rounding is a hundredth of it

ENGINE = "engine"
ALONE = "upstream"
ONE_BY_ONE = "upstream, one by one"
STATIC_BATCH = "upstream, static batch"
OPPONENTS = {1: (ALONE,), 8: (ONE_BY_ONE, STATIC_BATCH)}
SAYS_THE_SAME = {1: ALONE, 8: ONE_BY_ONE}  # a static batch shares one generator among its rows

END_TO_END = "end to end"
LANGUAGE_MODELS = "language models"
MEASURES: dict[str, Callable[[Spoken], float]] = {  # all in milliseconds
    END_TO_END: lambda s: 1000 * s.total.wall_s / s.num_frames,
    LANGUAGE_MODELS: lambda s: 1000 * s.language_models.wall_s / s.num_frames,
    "language models after the first frame": lambda s: 1000 * s.later_frames.wall_s / s.num_later_frames,
    "codec": lambda s: 1000 * s.codec.wall_s / s.num_frames,
    "language models, CPU time": lambda s: 1000 * s.language_models.cpu_s / s.num_frames,
    "codec, CPU time": lambda s: 1000 * s.codec.cpu_s / s.num_frames,
    "first audio (ms, not per frame)": lambda s: 1000 * median(u.first_audio_s for u in s.utterances),
}

METHOD = """
One process loads the same random-weight checkpoint twice, into the engine and into `qwen_tts` ({dtype},
{device}, {threads} torch threads for both), and lets them speak in turns, every other round in the opposite
order (rounds: {rounds}). Figures are medians over the rounds, lowest and highest in parentheses; a factor
is taken within a round before the median is. Everybody says "{text}" with default sampling, seeds 0 to 7, and
exactly the same number of frames ({frames}): these checkpoints never end an utterance by themselves. A frame
is 80 ms of audio. "End to end" is from text to samples: the engine streams chunks of 1, 2, 4, 8, 12, 12 …
frames, upstream (`generate_custom_voice`) decodes the whole utterance at its end. "Codec" is the part of that
time spent in the codec, "language models" the rest, prompts included. "After the first frame" leaves out the
prompt and the talker pass that upstream makes after its last frame, which weigh more in a short utterance
than in a long one. CPU time counts threads that spin while they wait. First audio is the median over the
callers, who all start together; upstream's is the end of the utterance, and of those before it where it
speaks one by one. In bfloat16 upstream's codec is in bfloat16, too, while ours stays in float32. Every timed
utterance is compared: in float32 and alone, the engine must have spoken upstream's codes and samples, or
there is no report.
"""


@dataclass(frozen=True)
class Workload:
    """How long an utterance is and how often everybody speaks; after `patience_s` no round begins."""

    frames: int
    rounds: int
    patience_s: float


# Seven frames are three whole chunks, and what a 0.6B model on two cores has the time for.
WORKLOADS = {
    "tiny": Workload(frames=63, rounds=5, patience_s=90),
    "published-0.6b": Workload(frames=7, rounds=3, patience_s=180),
}


@dataclass(frozen=True)
class Target:
    shape: str
    batch: int
    against: str
    at_least: float


TARGETS = (
    Target("tiny", 1, ALONE, 2.0),
    Target("published-0.6b", 1, ALONE, 1.2),
    Target("published-0.6b", 8, ONE_BY_ONE, 4.0),
)


@dataclass(frozen=True)
class Entry:
    batch: int
    who: str


Round = Mapping[Entry, Spoken]


@dataclass(frozen=True)
class Agreement:
    """How much of what the engine said upstream said, too.

    Args:
        frames: of all rounds.
        equal_frames: those before the first difference of their utterance.
        largest_sample_difference: between the audio of equal frames.
    """

    batch: int
    frames: int
    equal_frames: int
    largest_sample_difference: float

    @property
    def is_complete(self) -> bool:
        return self.equal_frames == self.frames and self.largest_sample_difference <= SAMPLE_TOLERANCE

    def __str__(self) -> str:
        return (
            f"batch {self.batch}: {self.equal_frames} of {self.frames} frames, samples of equal frames differ"
            f" by at most {self.largest_sample_difference:.1e}"
        )


@dataclass(frozen=True)
class Result:
    """One shape, measured."""

    shape: str
    frames: int
    rounds: int
    times: Mapping[Entry, Mapping[str, Spread]]
    factors: Mapping[Entry, Mapping[str, Spread]]  # by opponent: how many times as fast the engine is
    agreements: Sequence[Agreement]

    def figures(self) -> dict[str, object]:
        return {
            "shape": self.shape,
            "frames": self.frames,
            "rounds": self.rounds,
            "milliseconds": [_plain(entry, spreads) for entry, spreads in self.times.items()],
            "engine_times_as_fast_as": [_plain(entry, spreads) for entry, spreads in self.factors.items()],
            "agreement": [asdict(agreement) for agreement in self.agreements],
        }


@dataclass(frozen=True)
class Verdict:
    target: Target
    measure: str
    factor: Spread | None  # None: this shape was not measured

    @property
    def text(self) -> str:
        if self.factor is None:
            return "not measured"
        return "reached" if self.factor.median >= self.target.at_least else "**not reached**"


def main() -> None:
    options = parse_options()
    torch.set_num_threads(options.threads)
    meter = MachineMeter()
    results = [measure(shape, options) for shape in options.shapes]
    report = write_up(results, options, Provenance.of(meter))
    print(report.markdown())
    for path in report.write():
        progress(f"wrote {path}")


def measure(shape: str, options: argparse.Namespace) -> Result:
    workload = workload_of(shape, options)
    contestants = load(shape, options)
    requests = requests_of(workload.frames)
    warm_up(contestants, requests)
    rounds = list(play(shape, contestants, requests, workload))
    agreements = [compare(batch, rounds) for batch in BATCHES]
    if options.dtype == "float32":
        insist_on_agreement(shape, agreements[0])
    return Result(shape, workload.frames, len(rounds), times(rounds), factors(rounds), agreements)


def load(shape: str, options: argparse.Namespace) -> Mapping[str, Contestant]:
    gc.collect()  # the last shape's weights may take half of the memory
    checkpoint = build_endless(shape)
    progress(f"{shape}: loading {checkpoint} twice")
    ours = OurEngine(checkpoint, options.dtype, options.device)
    upstream = Upstream(checkpoint, options.dtype, options.device)
    return {ENGINE: ours, ALONE: upstream, ONE_BY_ONE: OneByOne(upstream), STATIC_BATCH: upstream}


class OneByOne:
    """Serves its callers in the order they came."""

    def __init__(self, contestant: Contestant) -> None:
        self._contestant = contestant

    def speak(self, requests: Sequence[SpeechRequest]) -> Spoken:
        spoken = self._contestant.speak(requests[:1])
        for request in requests[1:]:
            spoken = spoken.then(self._contestant.speak([request]))
        return spoken


def requests_of(frames: int) -> list[SpeechRequest]:
    """As many as the largest batch: the same text for all, so that a static batch needs no padding."""
    return [
        SpeechRequest(TEXT, language="English", speaker="ryan", seed=seed, max_frames=frames)
        for seed in range(max(BATCHES))
    ]


def warm_up(contestants: Mapping[str, Contestant], requests: Sequence[SpeechRequest]) -> None:
    short = [replace(request, max_frames=WARM_UP_FRAMES) for request in requests]
    for batch in BATCHES:
        for who in (ENGINE, ALONE):
            contestants[who].speak(short[:batch])


def play(
    shape: str, contestants: Mapping[str, Contestant], requests: Sequence[SpeechRequest], workload: Workload
) -> Iterator[Round]:
    """Who comes first has the cooler machine: every other round starts from the other end."""
    entries = [Entry(batch, who) for batch in BATCHES for who in (ENGINE, *OPPONENTS[batch])]
    began_s = time.monotonic()
    for i in range(workload.rounds):
        if i and time.monotonic() - began_s > workload.patience_s:
            progress(f"{shape}: out of patience after {i} of {workload.rounds} rounds")
            return
        spoken = {}
        for entry in entries[:: -1 if i % 2 else 1]:
            progress(f"{shape}, round {i + 1} of {workload.rounds}, batch {entry.batch}: {entry.who}")
            gc.collect()
            spoken[entry] = contestants[entry.who].speak(requests[: entry.batch])
        yield spoken


def times(rounds: Sequence[Round]) -> dict[Entry, dict[str, Spread]]:
    return {
        entry: {name: Spread.of(ms(spoken[entry]) for spoken in rounds) for name, ms in MEASURES.items()}
        for entry in rounds[0]
    }


def factors(rounds: Sequence[Round]) -> dict[Entry, dict[str, Spread]]:
    return {
        Entry(batch, who): {
            name: Spread.of(
                ms(spoken[Entry(batch, who)]) / ms(spoken[Entry(batch, ENGINE)]) for spoken in rounds
            )
            for name, ms in MEASURES.items()
        }
        for batch in BATCHES
        for who in OPPONENTS[batch]
    }


def compare(batch: int, rounds: Sequence[Round]) -> Agreement:
    pairs = [
        (ours, theirs)
        for spoken in rounds
        for ours, theirs in zip(
            spoken[Entry(batch, ENGINE)].utterances,
            spoken[Entry(batch, SAYS_THE_SAME[batch])].utterances,
            strict=True,
        )
    ]
    equal = [num_equal_frames(ours.codes, theirs.codes) for ours, theirs in pairs]
    differences = [
        np.abs(ours.samples[: n * FRAME_SAMPLES] - theirs.samples[: n * FRAME_SAMPLES]).max(initial=0)
        for n, (ours, theirs) in zip(equal, pairs, strict=True)
    ]
    frames = sum(len(theirs.codes) for _, theirs in pairs)
    return Agreement(batch, frames, sum(equal), float(max(differences)))


def num_equal_frames(ours: np.ndarray, theirs: np.ndarray) -> int:
    """How many frames two utterances share from their beginnings: codes [frames, 16] each."""
    shared = min(len(ours), len(theirs))
    return int((ours[:shared] == theirs[:shared]).all(1).cumprod().sum())


def insist_on_agreement(shape: str, agreement: Agreement) -> None:
    if not agreement.is_complete:
        raise SystemExit(
            f"{shape}: the engine does not say what upstream says ({agreement}); how fast it is means nothing"
        )


def verdicts(results: Sequence[Result]) -> list[Verdict]:
    factors_of = {result.shape: result.factors for result in results}
    return [
        Verdict(target, measure, _factor(factors_of.get(target.shape), target, measure))
        for target in TARGETS
        for measure in (END_TO_END, LANGUAGE_MODELS)
    ]


def _factor(
    measured: Mapping[Entry, Mapping[str, Spread]] | None, target: Target, measure: str
) -> Spread | None:
    return measured[Entry(target.batch, target.against)][measure] if measured else None


def write_up(results: Sequence[Result], options: argparse.Namespace, provenance: Provenance) -> Report:
    judged = verdicts(results)
    kind = "cpu" if options.device == "cpu" else "gpu"
    variant = [] if options.dtype == "float32" else [options.dtype]
    return Report(
        title=f"The engine against qwen_tts: {', '.join(options.shapes)}, {options.dtype}, {kind.upper()}",
        name="-".join([kind, *options.shapes, *variant]),
        method=method(results, options),
        sections=[targets_section(judged), *map(shape_section, results)],
        figures={
            "threads": options.threads,
            "dtype": options.dtype,
            "device": options.device,
            "targets": [{**asdict(verdict), "verdict": verdict.text.strip("*")} for verdict in judged],
            "shapes": [result.figures() for result in results],
        },
        provenance=provenance,
    )


def method(results: Sequence[Result], options: argparse.Namespace) -> str:
    return METHOD.format(
        dtype=options.dtype,
        device=options.device,
        threads=options.threads,
        text=TEXT,
        rounds=", ".join(f"{result.rounds} × {result.shape}" for result in results),
        frames=", ".join(f"{result.frames} with {result.shape}" for result in results),
    )


def targets_section(judged: Sequence[Verdict]) -> str:
    header = ("target", "measured as", "times as fast", "")
    return "## Targets\n\n" + table(header, [_verdict_row(verdict) for verdict in judged])


def shape_section(result: Result) -> str:
    tables = [_times_table(result, batch) for batch in BATCHES]
    agreement = "\n".join(f"* {agreement}" for agreement in result.agreements)
    return "\n\n".join(
        [
            f"## {result.shape}",
            "Milliseconds per frame, and how many times as fast the engine is.",
            *tables,
            f"Codes equal to upstream's, same seeds, all rounds:\n\n{agreement}",
        ]
    )


def _times_table(result: Result, batch: int) -> str:
    opponents = [Entry(batch, who) for who in OPPONENTS[batch]]
    header = [f"batch {batch}", ENGINE]
    for entry in opponents:
        header += [entry.who, "factor"]
    rows = []
    for name in MEASURES:
        row: list[object] = [name, result.times[Entry(batch, ENGINE)][name]]
        for entry in opponents:
            row += [result.times[entry][name], result.factors[entry][name]]
        rows.append(row)
    return table(header, rows)


def _verdict_row(verdict: Verdict) -> tuple[object, ...]:
    target = verdict.target
    wanted = f"{target.shape}, batch {target.batch}: at least {target.at_least:g} × {target.against}"
    return wanted, verdict.measure, verdict.factor or "", verdict.text


def _plain(entry: Entry, spreads: Mapping[str, Spread]) -> dict[str, object]:
    return {**asdict(entry), **{name: asdict(spread) for name, spread in spreads.items()}}


def workload_of(shape: str, options: argparse.Namespace) -> Workload:
    usual = WORKLOADS[shape]
    patience_s = math.inf if options.rounds else usual.patience_s
    return Workload(options.frames or usual.frames, options.rounds or usual.rounds, patience_s)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python perf/bench.py", description="Measure the engine against upstream's qwen_tts."
    )
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES), help="default: all")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: %(default)s)")
    parser.add_argument(
        "--threads",
        type=int,
        default=num_available_cores(),
        help="torch's, for both (default: %(default)s, the cores there are)",
    )
    parser.add_argument(
        "--rounds",
        type=_at_least(1),
        help="however long they take (default: the shape's own, while time lasts)",
    )
    parser.add_argument("--frames", type=_at_least(2), help="per utterance (default: the shape's own)")
    options = parser.parse_args()
    if options.device != "cpu" and not torch.cuda.is_available():
        parser.error(f"--device {options.device}: there is no GPU that torch can use")
    return options


def _at_least(least: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"{text} is too few; at least {least}")
        return int(text)

    return read


if __name__ == "__main__":
    main()
