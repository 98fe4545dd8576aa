"""Our engine against upstream's `qwen_tts` on the same random weights: `make bench`.

    make bench ARGS="--shapes tiny --rounds 3"
    python perf/bench.py --grid --shapes small --dtype bfloat16      # one part of `make bench-full`

perf/README.md tells how it measures; the report goes to perf/results/.
"""

from __future__ import annotations

import argparse
import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np
import torch

from checkpoints import SHAPES, build_endless
from claims import claims_section, plain
from contestants import Contestant, OurEngine, Spoken, Upstream
from plots import Line, line_plot
from qwen3_tts_engine.launch.machine import num_available_cores
from qwen3_tts_engine.request import FRAME_SAMPLES, SpeechRequest
from report import (
    MachineMeter,
    Provenance,
    Report,
    Spread,
    add_results_option,
    at_least,
    progress,
    table,
)

TEXT = "Good morning."
WARM_UP_FRAMES = 3
SAMPLE_TOLERANCE = 1e-3  # of full scale; rounding is a hundredth of it
FRAME_MS = 80.0

ENGINE = "engine"
ENGINE_INT8 = "engine, int8"
ALONE = "upstream"
ONE_BY_ONE = "upstream, one by one"
STATIC_BATCH = "upstream, static batch"

EQUAL = "equal lengths"
RAGGED = "ragged lengths"

END_TO_END = "end to end"
LANGUAGE_MODELS = "language models"
FIRST_AUDIO = "first audio (ms, not per frame)"
MEASURES: dict[str, Callable[[Spoken], float]] = {  # all in milliseconds
    END_TO_END: lambda s: 1000 * s.total.wall_s / s.num_frames,
    LANGUAGE_MODELS: lambda s: 1000 * s.language_models.wall_s / s.num_frames,
    "language models after the first frame": lambda s: 1000 * s.later_frames.wall_s / s.num_later_frames,
    "codec": lambda s: 1000 * s.codec.wall_s / s.num_frames,
    "end to end, CPU time": lambda s: 1000 * s.total.cpu_s / s.num_frames,
    "language models, CPU time": lambda s: 1000 * s.language_models.cpu_s / s.num_frames,
    "codec, CPU time": lambda s: 1000 * s.codec.cpu_s / s.num_frames,
    FIRST_AUDIO: lambda s: 1000 * median(u.first_audio_s for u in s.utterances),
}

METHOD = """
One process loads the same random-weight checkpoint into the engine and into `qwen_tts` ({dtype}, {device},
{threads} torch threads for all), and lets them speak in turns, every other round in the opposite order
(rounds: {rounds}). Figures are medians over the rounds, lowest and highest in parentheses; a factor is
taken within a round before the median is. Everybody says "{text}" with default sampling and a seed of their
own, and as many frames as they are asked for (on average: {frames}): these checkpoints never end an
utterance by themselves. A frame is 80 ms of audio. With ragged lengths they are evenly spread from a
quarter to seven quarters of that. Upstream's static batch then runs until its longest row has ended, and
only the frames that were asked for count; what it says beyond them is cut before its codec. One by one, it
serves the first {one_by_one} callers of a batch, for a caller more costs it as much as the one before. "End
to end" is from text to samples: the engine streams growing chunks as it serves them, upstream
(`generate_custom_voice`) decodes the whole utterance at its end. "Codec" is the part of that time spent in
the codec, "language models" the rest, prompts included. "After the first frame" leaves out the prompt and
the talker pass that upstream makes after its last frame, which weigh more in a short utterance than in a
long one. CPU time counts threads that spin while they wait. First audio is the median over the callers, who
all start together; upstream's is the end of the utterance, and of those before it where it speaks one by
one. Upstream's codec is in the same dtype as its language models, ours in {codec_dtype}; "int8" is the
engine with its language models' weights in int8, and is held against the same upstream. Every timed
utterance is compared: in float32 the engine must have spoken upstream's codes, alone and in every batch,
and alone also its samples, or there is no report.
"""


@dataclass(frozen=True)
class Setting:
    """How many utterances are spoken at once, and of which lengths."""

    batch: int
    lengths: str = EQUAL

    def __str__(self) -> str:
        return f"batch {self.batch}" if self.lengths == EQUAL else f"batch {self.batch}, {self.lengths}"

    @property
    def opponents(self) -> tuple[str, ...]:
        return (ALONE,) if self.batch == 1 else (ONE_BY_ONE, STATIC_BATCH)

    @property
    def says_the_same(self) -> str:
        """A static batch shares one generator among its rows."""
        return self.opponents[0]


@dataclass(frozen=True)
class Workload:
    """What everybody speaks and how often; after `patience_s` no round begins.

    Args:
        frames: of an utterance, on average.
        one_by_one: how many callers of a batch upstream serves, one after the other.
    """

    settings: tuple[Setting, ...]
    frames: int
    rounds: int
    patience_s: float
    one_by_one: int = 2

    def settings_with(self, lengths: str) -> list[Setting]:
        return [setting for setting in self.settings if setting.lengths == lengths]


QUICK_SETTINGS = (Setting(1), Setting(8), Setting(8, RAGGED))
GRID_SETTINGS = tuple(Setting(batch) for batch in (1, 2, 4, 8, 16))

# Seven frames are three whole chunks, and what a 0.6B model on two cores has the time for.
QUICK = {
    "tiny": Workload(QUICK_SETTINGS, frames=63, rounds=5, patience_s=45),
    "small": Workload(QUICK_SETTINGS, frames=39, rounds=3, patience_s=60),
    "published-0.6b": Workload(QUICK_SETTINGS, frames=7, rounds=3, patience_s=125),
}
GRID = {
    "tiny": Workload(
        (*GRID_SETTINGS, *(Setting(batch, RAGGED) for batch in (4, 8, 16))), 39, rounds=5, patience_s=60
    ),
    "small": Workload(
        (*GRID_SETTINGS, *(Setting(batch, RAGGED) for batch in (4, 8, 16))), 27, rounds=3, patience_s=60
    ),
    "published-0.6b": Workload((*GRID_SETTINGS, Setting(8, RAGGED)), 7, rounds=3, patience_s=200),
}


@dataclass(frozen=True)
class Entry:
    setting: Setting
    who: str


@dataclass(frozen=True)
class Duel:
    setting: Setting
    who: str
    against: str


Round = Mapping[Entry, Spoken]


@dataclass(frozen=True)
class Agreement:
    """How much of what the engine said upstream said, too.

    Args:
        frames: of all rounds.
        equal_frames: those before the first difference of their utterance.
        largest_sample_difference: between the audio of equal frames.
    """

    setting: Setting
    who: str
    frames: int
    equal_frames: int
    largest_sample_difference: float

    @property
    def is_complete(self) -> bool:
        """Samples are held to be equal where one kernel made them: alone."""
        same_sound = self.setting.batch > 1 or self.largest_sample_difference <= SAMPLE_TOLERANCE
        return self.equal_frames == self.frames and same_sound

    def __str__(self) -> str:
        return (
            f"{self.setting}, {self.who}: {self.equal_frames} of {self.frames} frames, samples of equal"
            f" frames differ by at most {self.largest_sample_difference:.1e}"
        )


@dataclass(frozen=True)
class Result:
    """One shape, measured."""

    shape: str
    dtype: str
    workload: Workload
    rounds: Sequence[Round]

    @property
    def engines(self) -> list[str]:
        return [who for who in (ENGINE, ENGINE_INT8) if Entry(Setting(1), who) in self.rounds[0]]

    @property
    def entries(self) -> list[Entry]:
        return list(self.rounds[0])

    @property
    def duels(self) -> list[Duel]:
        return [
            Duel(setting, who, against)
            for setting in self.workload.settings
            for who in self.engines
            for against in setting.opponents
        ]

    @property
    def agreements(self) -> list[Agreement]:
        return [
            compare(setting, who, self.rounds) for setting in self.workload.settings for who in self.engines
        ]

    def cost(self, entry: Entry, measure: str) -> Spread:
        """Milliseconds."""
        return Spread.of(MEASURES[measure](spoken[entry]) for spoken in self.rounds)

    def factor(self, duel: Duel, measure: str = END_TO_END) -> Spread:
        """How many times as fast the engine is."""
        ours, theirs = Entry(duel.setting, duel.who), Entry(duel.setting, duel.against)
        ms = MEASURES[measure]
        return Spread.of(ms(spoken[theirs]) / ms(spoken[ours]) for spoken in self.rounds)

    def figures(self) -> dict[str, object]:
        return {
            "shape": self.shape,
            "frames": self.workload.frames,
            "rounds": len(self.rounds),
            "milliseconds": [
                _flat(entry) | {name: asdict(self.cost(entry, name)) for name in MEASURES}
                for entry in self.entries
            ],
            "engine_times_as_fast_as": [
                _flat(duel) | {name: asdict(self.factor(duel, name)) for name in MEASURES}
                for duel in self.duels
            ],
            "agreement": [_flat(agreement) for agreement in self.agreements],
        }


def main() -> None:
    options = parse_options()
    torch.set_num_threads(options.threads)
    meter = MachineMeter()
    results = [measure(shape, options) for shape in options.shapes]
    write_up(results, options, Provenance.of(meter)).publish(options.results)


def measure(shape: str, options: argparse.Namespace) -> Result:
    workload = workload_of(shape, options)
    contestants = load(shape, workload, options)
    warm_up(contestants, workload)
    result = Result(shape, options.dtype, workload, list(play(shape, contestants, workload)))
    if options.dtype == "float32":
        insist_on_agreement(result)
    return result


def load(shape: str, workload: Workload, options: argparse.Namespace) -> Mapping[str, Contestant]:
    gc.collect()  # the last shape's weights may take half of the memory
    checkpoint = build_endless(shape)
    progress(f"{shape}: loading {checkpoint} into everybody")
    upstream = Upstream(checkpoint, options.dtype, options.device)
    contestants: dict[str, Contestant] = {
        ENGINE: our_engine(checkpoint, options),
        ALONE: upstream,
        ONE_BY_ONE: OneByOne(upstream, workload.one_by_one),
        STATIC_BATCH: upstream,
    }
    if options.int8:
        contestants[ENGINE_INT8] = our_engine(checkpoint, options, weights="int8")
    return contestants


def our_engine(checkpoint: Path, options: argparse.Namespace, **settings: str) -> OurEngine:
    return OurEngine(checkpoint, options.dtype, options.device, codec_dtype=options.codec_dtype, **settings)


class OneByOne:
    """Serves its callers in the order they came, the first `at_most` of them."""

    def __init__(self, contestant: Contestant, at_most: int) -> None:
        self._contestant = contestant
        self._at_most = at_most

    def speak(self, requests: Sequence[SpeechRequest]) -> Spoken:
        spoken = self._contestant.speak(requests[:1])
        for request in requests[1 : self._at_most]:
            spoken = spoken.then(self._contestant.speak([request]))
        return spoken


def requests_of(setting: Setting, frames: int) -> list[SpeechRequest]:
    """The same text for all, so that a static batch needs no padding."""
    return [
        SpeechRequest(TEXT, language="English", speaker="ryan", seed=seed, max_frames=length)
        for seed, length in enumerate(lengths_of(setting, frames))
    ]


def lengths_of(setting: Setting, frames: int) -> list[int]:
    """Frames of each utterance: all equal, or evenly spread about the same mean, the extremes first.

    Whoever serves only the first two then has the mean, too.
    """
    if setting.lengths == EQUAL:
        return [frames] * setting.batch
    spread = np.linspace(frames / 4, 7 * frames / 4, setting.batch).round().astype(int).tolist()
    inwards = [i for pair in zip(spread, reversed(spread), strict=True) for i in pair]
    return [max(2, length) for length in inwards[: setting.batch]]


def warm_up(contestants: Mapping[str, Contestant], workload: Workload) -> None:
    for batch in sorted({setting.batch for setting in workload.settings}):
        requests = requests_of(Setting(batch), WARM_UP_FRAMES)
        for who in (contestants.keys() - {ONE_BY_ONE, STATIC_BATCH}) if batch > 1 else [ENGINE, ALONE]:
            contestants[who].speak(requests)


def play(shape: str, contestants: Mapping[str, Contestant], workload: Workload) -> Iterator[Round]:
    """Who comes first has the cooler machine: every other round starts from the other end."""
    engines = [who for who in (ENGINE, ENGINE_INT8) if who in contestants]
    entries = [Entry(setting, who) for setting in workload.settings for who in (*engines, *setting.opponents)]
    began_s = time.monotonic()
    for i in range(workload.rounds):
        if i and time.monotonic() - began_s > workload.patience_s:
            progress(f"{shape}: out of patience after {i} of {workload.rounds} rounds")
            return
        spoken = {}
        for entry in entries[:: -1 if i % 2 else 1]:
            progress(f"{shape}, round {i + 1} of {workload.rounds}, {entry.setting}: {entry.who}")
            gc.collect()
            spoken[entry] = contestants[entry.who].speak(requests_of(entry.setting, workload.frames))
        yield {entry: spoken[entry] for entry in entries}


def compare(setting: Setting, who: str, rounds: Sequence[Round]) -> Agreement:
    """Of a batch, the utterances that upstream spoke alone."""
    pairs = [
        (ours, theirs)
        for spoken in rounds
        for ours, theirs in zip(
            spoken[Entry(setting, who)].utterances,
            spoken[Entry(setting, setting.says_the_same)].utterances,
            strict=False,
        )
    ]
    equal = [num_equal_frames(ours.codes, theirs.codes) for ours, theirs in pairs]
    differences = [
        np.abs(ours.samples[: n * FRAME_SAMPLES] - theirs.samples[: n * FRAME_SAMPLES]).max(initial=0)
        for n, (ours, theirs) in zip(equal, pairs, strict=True)
    ]
    frames = sum(len(theirs.codes) for _, theirs in pairs)
    return Agreement(setting, who, frames, sum(equal), float(max(differences)))


def num_equal_frames(ours: np.ndarray, theirs: np.ndarray) -> int:
    """How many frames two utterances share from their beginnings: codes [frames, 16] each."""
    shared = min(len(ours), len(theirs))
    return int((ours[:shared] == theirs[:shared]).all(1).cumprod().sum())


def insist_on_agreement(result: Result) -> None:
    for agreement in result.agreements:
        if not agreement.is_complete and agreement.who == ENGINE:
            raise SystemExit(
                f"{result.shape}: the engine does not say what upstream says ({agreement});"
                " how fast it is means nothing"
            )


# --- the report -------------------------------------------------------------------------------------------


def findings(results: Sequence[Result]) -> dict[str, Spread]:
    found: dict[str, Spread] = {}
    for result in results:
        found |= FINDINGS.get((result.shape, result.dtype), lambda _: {})(result)
    return found


def _findings_of_tiny(result: Result) -> dict[str, Spread]:
    return {"tiny alone": result.factor(Duel(Setting(1), ENGINE, ALONE))}


def _findings_of_8(result: Result, suffix: str) -> dict[str, Spread]:
    together, ragged = Setting(8), Setting(8, RAGGED)
    wanted = {
        "0.6b of 8, sequential": Duel(together, ENGINE, ONE_BY_ONE),
        "0.6b of 8, static": Duel(together, ENGINE, STATIC_BATCH),
        "0.6b of 8, ragged": Duel(ragged, ENGINE, STATIC_BATCH),
    }
    return {key + suffix: result.factor(duel) for key, duel in wanted.items() if duel in result.duels}


def _findings_of_0b6(result: Result) -> dict[str, Spread]:
    alone = Duel(Setting(1), ENGINE, ALONE)
    found = {
        "0.6b alone": result.factor(alone),
        "0.6b alone, language models": result.factor(alone, LANGUAGE_MODELS),
        **_findings_of_8(result, ""),
    }
    if ENGINE_INT8 in result.engines:
        found["0.6b alone, int8"] = result.factor(replace(alone, who=ENGINE_INT8))
    eight, sixteen = Entry(Setting(8), ENGINE), Entry(Setting(16), ENGINE)
    ms = MEASURES[END_TO_END]
    if eight in result.entries:
        found["0.6b of 8, real time"] = Spread.of(ms(spoken[eight]) / FRAME_MS for spoken in result.rounds)
    if sixteen in result.entries:
        found["0.6b of 16"] = Spread.of(ms(spoken[sixteen]) / ms(spoken[eight]) for spoken in result.rounds)
    return found


FINDINGS: Mapping[tuple[str, str], Callable[[Result], dict[str, Spread]]] = {
    ("tiny", "float32"): _findings_of_tiny,
    ("published-0.6b", "float32"): lambda result: _findings_of_8(result, ", float32"),
    ("published-0.6b", "bfloat16"): _findings_of_0b6,
}


def write_up(results: Sequence[Result], options: argparse.Namespace, provenance: Provenance) -> Report:
    found = findings(results)
    kind = "cpu" if options.device == "cpu" else "gpu"
    variant = [] if options.dtype == "float32" else [options.dtype]
    return Report(
        title=f"The engine against qwen_tts: {', '.join(options.shapes)}, {options.dtype}, {kind.upper()}",
        name="-".join([kind, *(["grid"] if options.grid else []), *options.shapes, *variant]),
        method=method(results, options),
        sections=[*filter(None, [claims_section(found)]), *map(shape_section, results)],
        figures={
            "threads": options.threads,
            "dtype": options.dtype,
            "codec_dtype": options.codec_dtype,
            "device": options.device,
            "findings": plain(found),
            "shapes": [result.figures() for result in results],
        },
        provenance=provenance,
        plots=dict(plot for result in results for plot in shape_plots(result)),
    )


def method(results: Sequence[Result], options: argparse.Namespace) -> str:
    return METHOD.format(
        dtype=options.dtype,
        codec_dtype=options.codec_dtype,
        device=options.device,
        threads=options.threads,
        text=TEXT,
        rounds=", ".join(f"{len(result.rounds)} × {result.shape}" for result in results),
        frames=", ".join(f"{result.workload.frames} with {result.shape}" for result in results),
        one_by_one=max(result.workload.one_by_one for result in results),
    )


def shape_section(result: Result) -> str:
    tables = [setting_table(result, setting) for setting in result.workload.settings]
    agreement = "\n".join(f"* {agreement}" for agreement in result.agreements)
    return "\n\n".join(
        [
            f"## {result.shape}",
            "Milliseconds per frame, and how many times as fast the engine is.",
            *tables,
            f"Codes equal to upstream's, same seeds, all rounds:\n\n{agreement}",
        ]
    )


def setting_table(result: Result, setting: Setting) -> str:
    header = [str(setting), *result.engines]
    for against in setting.opponents:
        header += [against, *("factor" + who.removeprefix(ENGINE) for who in result.engines)]
    return table(header, [_setting_row(result, setting, measure) for measure in MEASURES])


def _setting_row(result: Result, setting: Setting, measure: str) -> list[object]:
    row: list[object] = [measure, *(result.cost(Entry(setting, who), measure) for who in result.engines)]
    for against in setting.opponents:
        row.append(result.cost(Entry(setting, against), measure))
        row += [result.factor(Duel(setting, who, against), measure) for who in result.engines]
    return row


def shape_plots(result: Result) -> Iterator[tuple[str, str]]:
    """What happens as the batch grows."""
    for lengths in (EQUAL, RAGGED):
        settings = result.workload.settings_with(lengths)
        if len(settings) < 2:
            continue
        of = f"{result.shape}, {lengths}"
        costs = {
            who: _line(settings, lambda s, who=who: result.cost(Entry(s, who), END_TO_END), who, result)
            for who in (*result.engines, ALONE, ONE_BY_ONE, STATIC_BATCH)
        }
        yield (
            f"Cost per frame, {of}",
            line_plot(costs, "batch", "ms per frame", FRAME_MS, is_logarithmic=True),
        )
        factors = {
            f"{who} against {against}": _line(
                settings,
                lambda s, who=who, against=against: result.factor(Duel(s, who, against)),
                against,
                result,
            )
            for who in result.engines
            for against in (ONE_BY_ONE, STATIC_BATCH)
        }
        yield f"Factors, {of}", line_plot(factors, "batch", "times as fast")


def _line(settings: Sequence[Setting], y: Callable[[Setting], Spread], who: str, result: Result) -> Line:
    return {setting.batch: y(setting) for setting in settings if Entry(setting, who) in result.entries}


def _flat(record: Entry | Duel | Agreement) -> dict[str, object]:
    """Without the nesting."""
    values = asdict(record)
    return {**values.pop("setting"), **values}


def workload_of(shape: str, options: argparse.Namespace) -> Workload:
    usual = (GRID if options.grid else QUICK)[shape]
    return replace(
        usual,
        frames=options.frames or usual.frames,
        rounds=options.rounds or usual.rounds,
        patience_s=math.inf if options.rounds else usual.patience_s,
    )


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python perf/bench.py", description="Measure the engine against upstream's qwen_tts."
    )
    parser.add_argument(
        "--shapes",
        nargs="+",
        choices=SHAPES,
        default=["tiny", "published-0.6b"],
        help="default: %(default)s",
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument(
        "--codec-dtype", choices=("float32", "bfloat16"), help="of the engine (default: as --dtype)"
    )
    parser.add_argument("--int8", action="store_true", help="the engine with int8 weights, too")
    parser.add_argument("--grid", action="store_true", help="batches of 1, 2, 4, 8 and 16 (default: 1 and 8)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: %(default)s)")
    parser.add_argument(
        "--threads",
        type=int,
        default=num_available_cores(),
        help="torch's, for both (default: %(default)s, the cores there are)",
    )
    parser.add_argument(
        "--rounds",
        type=at_least(1),
        help="however long they take (default: the shape's own, while time lasts)",
    )
    parser.add_argument("--frames", type=at_least(2), help="per utterance (default: the shape's own)")
    add_results_option(parser)
    options = parser.parse_args()
    options.codec_dtype = options.codec_dtype or options.dtype
    if options.device != "cpu" and not torch.cuda.is_available():
        parser.error(f"--device {options.device}: there is no GPU that torch can use")
    return options


if __name__ == "__main__":
    main()
