"""All that callers do, at full slots, for minutes or hours, and every sample that they hear checked.

    make soak MINUTES=30
    python perf/soak.py --minutes 3

It ends with status 1 when anything was wrong. perf/README.md tells how it judges; the report goes to
perf/results/.
"""

from __future__ import annotations

import argparse
import io
import random
import statistics
import sys
import threading
import time
import wave
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import pairwise
from typing import Any

import httpx
import numpy as np
import psutil
from numpy.typing import NDArray

from arrivals import silence_s
from qwen3_tts_client import ClonedVoice, DesignedVoice, InvalidRequest, SpeechClient, SpeechError, Voice
from qwen3_tts_engine.launch.server import Server
from qwen3_tts_engine.tiny import build_all
from qwen3_tts_gateway.sound.encoder import to_int16
from report import ROOT, MachineMeter, Provenance, Report, add_results_option, device_kind, table
from serving import counted, counted_on, gateway_of, metrics_page, processes_of, serving

CUSTOM_VOICE, VOICE_DESIGN, BASE = TALKERS = (
    "qwen3_tts_custom_voice",
    "qwen3_tts_voice_design",
    "qwen3_tts_base",
)
MODELS = (*TALKERS, "reference_audio", "voice_encoder", "create_voice", "voices")
SAVED = "soak grandpa"
TEXTS = (
    "Good morning.",
    "The coffee is ready, and so is the bread.",
    "你好，今天天气很好。",
    "One, two, three, and here we go again: nobody is surprised.",
)
FRAME_SAMPLES, SAMPLE_RATE = 1920, 24_000
SLOTS = 16  # of each model that speaks
MIN_FULL = 0.9  # of the looks at which there were callers for every slot of a model
LONGEST = 32  # frames: short utterances are many, and joins and endings are where things go wrong

# What a caller does next, and how often.
SPEAK, LEAVE, NONSENSE = "spoken to the end", "left early", "refused"
DEEDS = {SPEAK: 86, LEAVE: 8, NONSENSE: 6}
BAD_OPTIONS: tuple[dict[str, Any], ...] = (
    {"max_frames": 0},
    {"temperature": -1.0},
    {"language": "Klingon"},
    {"top_p": 2.0},
    {"repetition_penalty": 0.0},
)

# Spoken to, waiting in the model, waiting in Triton.
GAUGES = ("qwen3_tts_active_slots", "qwen3_tts_waiting_requests", "nv_inference_pending_request_count")

WARM_UP_SHARE = 0.2  # of the time: allocators and caches find their size
WARM_UP_S = 10.0  # before the first look: everybody has connected, every thread is there
LOOK_EVERY_S = 2.0
# What may be noise. A kilobyte lost by each of 20,000 utterances, or a descriptor by one in 1000, is more.
MAX_RISE_BYTES = 16 << 20
MAX_MORE = 16  # descriptors, and threads
MAX_MORE_SILENCE = 0.25  # of what there was at first, and as much again:
SILENCE_NOISE = 0.02  # seconds for each second of audio
MAX_TOLD = 20  # complaints; then the run is over
PATIENCE_S = 120.0

METHOD = """
A tritonserver and a gateway started for this run serve the tiny checkpoints. First each of {lines} utterances
(every task, cloned voices with and without reference frames, a saved voice, a mix) is spoken once alone. Then
{callers} callers for each of the three models that speak and {gateway_callers} of the gateway ask for them
again and again, each with dice of its own: {speak} % are heard to their end, {leave} % left after one to
three chunks, {nonsense} % are requests that must be refused. What is heard must be as many frames and samples
as when it was spoken alone, each sample the same (through the gateway, the same in 16 bits);
what is left early, the beginning of that; and the client refuses chunks that are missing, come twice or out
of order. Every {look_s:g} s the memory of every process is read; a slope (Theil and Sen's, after the first
{warm_up:.0%} of the time) that amounts to over {max_mib:g} MiB is a leak. Descriptors, threads and regions of
shared memory are counted before and after, while nobody speaks; over {more} descriptors or threads more are
a leak, and so is one region. Silence is how long a listener who plays what has come would wait for chunks;
for each second of audio it must not be more in the last third of the run than in the first by over a quarter
and {silence_ms:g} ms. At {full:.0%} of the looks each model must have callers for all its slots.
"""


@dataclass(frozen=True)
class Line:
    """Something to say, always the same way.

    Args:
        kind: which way of speaking it stands for.
    """

    kind: str
    text: str
    voice: Voice
    seed: int
    max_frames: int


@dataclass(frozen=True)
class Heard:
    """An utterance, or the beginning of one.

    Args:
        chunks: when each arrived, and its samples.
    """

    chunks: Sequence[tuple[float, NDArray[np.float32]]]

    @property
    def samples(self) -> NDArray[np.float32]:
        return np.concatenate([samples for _, samples in self.chunks] or [np.zeros(0, np.float32)])

    @property
    def silence_s(self) -> float:
        """How long a listener would have waited after the first chunk."""
        return silence_s([(at_s, len(samples) / SAMPLE_RATE) for at_s, samples in self.chunks])


class WrongAudio(Exception):
    """What was heard is not what should have been."""


@dataclass
class Ledger:
    """What happened, written by every caller.

    Attributes:
        done: by kind of utterance and deed.
        complaints: what was wrong, the first of them in words.
        silence: of each utterance heard to its end: when that was, its silence and its audio in seconds.
    """

    done: Counter[tuple[str, str]] = field(default_factory=Counter)
    num_complaints: int = 0
    complaints: list[str] = field(default_factory=list)
    silence: list[tuple[float, float, float]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, kind: str, deed: str, heard: Heard | None = None) -> None:
        with self._lock:
            self.done[kind, deed] += 1
            if heard is not None:
                audio_s = len(heard.samples) / SAMPLE_RATE
                self.silence.append((time.monotonic(), heard.silence_s, audio_s))

    def complain(self, told: str) -> None:
        with self._lock:
            self.num_complaints += 1
            if len(self.complaints) < MAX_TOLD:
                self.complaints.append(told)

    @property
    def num_verified(self) -> int:
        """Utterances heard to their end whose every sample was right."""
        return sum(count for (_, deed), count in self.done.items() if deed == SPEAK)


def lines() -> dict[str, list[Line]]:
    """What there is to say, by the model that says it."""
    ways: dict[str, list[tuple[str, Voice]]] = {
        CUSTOM_VOICE: [("speaker", "ryan"), ("speaker", "vivian"), ("speaker", "serena")],
        VOICE_DESIGN: [("designed", DesignedVoice(words)) for words in ("a warm old storyteller", "a child")],
        BASE: [
            ("cloned", ClonedVoice(hum(110.0), "Hm, hm, hm, this is what I sound like.")),
            ("cloned, x-vector", ClonedVoice(hum(220.0), x_vector_only=True)),
            ("saved", SAVED),
            ("mixed", f"{SAVED}(2)"),
        ],
    }
    dice = random.Random(1)
    return {
        model: [
            Line(kind, text, voice, seed=dice.randrange(1 << 40), max_frames=dice.randint(1, LONGEST))
            for kind, voice in voices
            for text in TEXTS
        ]
        for model, voices in ways.items()
    }


def hum(pitch_hz: float, seconds: float = 1.5) -> bytes:
    """A WAV file that the voice encoder takes."""
    at_s = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    samples = sum(np.sin(2 * np.pi * pitch_hz * n * at_s) / n for n in range(1, 6)) / 4
    file = io.BytesIO()
    with wave.open(file, "wb") as written:
        written.setnchannels(1)
        written.setsampwidth(2)
        written.setframerate(SAMPLE_RATE)
        written.writeframes((samples * 32767).astype("<i2").tobytes())
    return file.getvalue()


# --- callers ----------------------------------------------------------------------------------------------


class TritonEar:
    """Hears lines from Triton."""

    def __init__(self, tts: SpeechClient) -> None:
        self._tts = tts

    def of(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """What is heard of what is spoken."""
        return samples

    def hear(self, line: Line, most_chunks: int | None = None) -> Heard:
        """To the end, or only the first chunks."""
        chunks = []
        with self._tts.stream(line.text, line.voice, seed=line.seed, max_frames=line.max_frames) as speech:
            for samples in speech:
                chunks.append((time.monotonic(), samples))
                if len(chunks) == most_chunks:
                    return Heard(chunks)
            heard = Heard(chunks)
            if speech.num_frames * FRAME_SAMPLES != len(heard.samples):
                raise WrongAudio(f"{speech.num_frames} frames came with {len(heard.samples)} samples")
        return heard

    def ask_nonsense(self, line: Line, dice: random.Random) -> None:
        options = {"max_frames": line.max_frames, **dice.choice(BAD_OPTIONS)}
        self._tts.synthesize(line.text, line.voice, **options)


class GatewayEar:
    """Hears lines from the gateway, by OpenAI's route."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http

    def of(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """What is heard of what is spoken: 16 bits."""
        return floats_of(to_int16(samples))

    def hear(self, line: Line, most_chunks: int | None = None) -> Heard:
        chunks, odd = [], b""
        body = {"input": line.text, "voice": line.voice, "seed": line.seed, "response_format": "pcm"}
        body["max_new_tokens"] = line.max_frames + 1
        with self._http.stream("POST", "/v1/audio/speech", json=body) as response:
            if response.status_code == 400:
                raise InvalidRequest(response.read().decode())
            if response.status_code != 200:
                raise SpeechError(f"the gateway answered {response.status_code}: {response.read().decode()}")
            for content in response.iter_raw():
                content = odd + content
                whole = len(content) // 2 * 2
                odd = content[whole:]
                samples = floats_of(np.frombuffer(content[:whole], "<i2"))
                chunks.append((time.monotonic(), samples))
                if len(chunks) == most_chunks:
                    break
        return Heard(chunks)

    def ask_nonsense(self, line: Line, dice: random.Random) -> None:
        self.hear(replace(line, text=" "))


def floats_of(pcm: NDArray[np.int16]) -> NDArray[np.float32]:
    return pcm.astype(np.float32) / np.float32(1 << 15)


Ear = TritonEar | GatewayEar


@dataclass(frozen=True)
class Caller:
    """One who asks again and again.

    Args:
        alone: what each line sounds like, [samples].
        dice: its own.
    """

    ear: Ear
    lines: Sequence[Line]
    alone: Mapping[Line, NDArray[np.float32]]
    ledger: Ledger
    dice: random.Random

    def call_until(self, is_over: threading.Event) -> None:
        while not is_over.is_set():
            line = self.dice.choice(self.lines)
            (deed,) = self.dice.choices(list(DEEDS), list(DEEDS.values()))
            try:
                self._do(deed, line)
            except (SpeechError, WrongAudio, httpx.HTTPError) as error:
                about = f"{line.kind}, to be {deed}, seed {line.seed}"
                self.ledger.complain(f"{about}: {type(error).__name__}: {error}")
                if self.ledger.num_complaints >= MAX_TOLD:
                    is_over.set()

    def _do(self, deed: str, line: Line) -> None:
        if deed == NONSENSE:
            self._expect_refusal(line)
            self.ledger.note(line.kind, deed)
            return
        heard = self.ear.hear(line, self.dice.randint(1, 3) if deed == LEAVE else None)
        compare(heard, self.ear.of(self.alone[line]), to_the_end=deed == SPEAK)
        self.ledger.note(line.kind, deed, heard if deed == SPEAK else None)

    def _expect_refusal(self, line: Line) -> None:
        try:
            self.ear.ask_nonsense(line, self.dice)
        except InvalidRequest:
            return
        raise WrongAudio("nonsense was spoken")


def compare(heard: Heard, alone: NDArray[np.float32], *, to_the_end: bool) -> None:
    """Raise WrongAudio where this is not the line, or not the beginning of it."""
    samples = heard.samples
    if len(samples) > len(alone) or (to_the_end and len(samples) != len(alone)):
        raise WrongAudio(f"{len(samples)} samples where there should be {len(alone)}")
    off = np.abs(samples - alone[: len(samples)]).max(initial=0.0)
    if off != 0:
        raise WrongAudio(f"a sample is off by {off:.2g}: another voice, or a chunk that belongs elsewhere")


@contextmanager
def crowd(
    grpc_address: str, gateway_url: str | None, ledger: Ledger, *, callers: int, gateway_callers: int
) -> Iterator[list[Caller]]:
    """Everybody who will call, once each line has been spoken alone."""
    said = lines()
    with ExitStack() as stack:
        ears: list[tuple[Ear, Sequence[Line]]] = []
        alone: dict[Line, NDArray[np.float32]] = {}
        for model, its_lines in said.items():
            tts = stack.enter_context(SpeechClient(grpc_address, timeout_s=PATIENCE_S))
            if model == BASE:
                tts.voices.save(SAVED, ClonedVoice(hum(150.0), "Hm, hm, so it was."))
                stack.callback(forget, tts)
            ear = TritonEar(tts)
            alone |= {line: ear.hear(line).samples for line in its_lines}
            ears += [(ear, its_lines)] * callers
        if gateway_url is not None:
            http = stack.enter_context(httpx.Client(base_url=gateway_url, timeout=PATIENCE_S))
            named = [line for line in (*said[CUSTOM_VOICE], *said[BASE]) if line.kind in ("speaker", "saved")]
            ears += [(GatewayEar(http), named)] * gateway_callers
        yield [
            Caller(ear, its_lines, alone, ledger, random.Random(number))
            for number, (ear, its_lines) in enumerate(ears)
        ]


def forget(tts: SpeechClient) -> None:
    with suppress(SpeechError):  # a server that has died is complained of already
        tts.voices.delete(SAVED)


def call_together(
    everybody: Sequence[Caller], seconds: float, besides: Sequence[Callable[[threading.Event], None]] = ()
) -> None:
    """Let all of them call for so long, and others do until then what they do."""
    is_over = threading.Event()
    with ThreadPoolExecutor(len(everybody) + len(besides)) as pool:
        acts = [*besides, *(caller.call_until for caller in everybody)]
        doing = [pool.submit(act, is_over) for act in acts]
        try:
            is_over.wait(seconds)
        finally:
            is_over.set()
    for done in doing:
        done.result()


# --- what must not grow -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Look:
    """At a process, at a time."""

    at_s: float
    rss_bytes: int
    descriptors: int
    threads: int

    @classmethod
    def at(cls, process: psutil.Process) -> Look:
        with process.oneshot():
            rss_bytes = process.memory_info().rss
            return cls(time.monotonic(), rss_bytes, process.num_fds(), process.num_threads())


class Watch:
    """Looks at every process now and then."""

    def __init__(self, processes: Mapping[str, psutil.Process], every_s: float) -> None:
        self._processes = processes
        self._every_s = every_s
        self.looks: dict[str, list[Look]] = {name: [] for name in processes}

    def look_until(self, is_over: threading.Event) -> None:
        while not is_over.wait(self._every_s):
            for name, look in self.look().items():
                self.looks[name].append(look)

    def look(self) -> dict[str, Look]:
        alive = {name: process for name, process in self._processes.items() if process.is_running()}
        return {name: Look.at(process) for name, process in alive.items()}


@dataclass(frozen=True)
class Growth:
    """Of one process.

    Args:
        rise_bytes: of its memory over the time after the warm-up, by the slope.
        bytes_per_hour: that slope.
        more_descriptors: while nobody speaks, after the run, than before it.
        more_threads: likewise.
    """

    process: str
    rss_bytes: int
    rise_bytes: float
    bytes_per_hour: float
    more_descriptors: int
    more_threads: int

    @classmethod
    def of(cls, process: str, looks: Sequence[Look], before: Look, after: Look) -> Growth:
        warm = looks[int(len(looks) * WARM_UP_SHARE) :]
        per_s = theil_sen([look.at_s for look in warm], [look.rss_bytes for look in warm])
        span_s = warm[-1].at_s - warm[0].at_s if warm else 0.0
        return cls(
            process,
            after.rss_bytes,
            rise_bytes=per_s * span_s,
            bytes_per_hour=per_s * 3600,
            more_descriptors=after.descriptors - before.descriptors,
            more_threads=after.threads - before.threads,
        )

    def complaints(self) -> Iterator[str]:
        if self.rise_bytes > MAX_RISE_BYTES:
            yield f"{self.process} has grown by {self.rise_bytes / 2**20:.0f} MiB"
        for what, more in (("descriptors", self.more_descriptors), ("threads", self.more_threads)):
            if more > MAX_MORE:
                yield f"{self.process} has {more} {what} more than before"


def theil_sen(times: Sequence[float], values: Sequence[float], most_points: int = 300) -> float:
    """The median slope between any two points, which single peaks do not move.

    Source: https://en.wikipedia.org/wiki/Theil%E2%80%93Sen_estimator
    """
    every = max(1, len(times) // most_points)
    points = list(zip(times[::every], values[::every], strict=True))
    slopes = [(v - u) / (t - s) for i, (s, u) in enumerate(points) for t, v in points[i + 1 :]]
    return statistics.median(slopes) if slopes else 0.0


def silence_by_third(
    silence: Sequence[tuple[float, float, float]], began_s: float, ended_s: float
) -> list[float]:
    """Seconds that listeners waited for each second of audio, after the warm-up."""
    bounds = np.linspace(began_s + WARM_UP_SHARE * (ended_s - began_s), ended_s, 4)
    found = []
    for low, high in pairwise(bounds):
        waits = [(wait_s, audio_s) for at_s, wait_s, audio_s in silence if low <= at_s < high]
        audio_s = sum(audio_s for _, audio_s in waits)
        found.append(sum(wait_s for wait_s, _ in waits) / audio_s if audio_s else 0.0)
    return found


# --- the run ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Filling:
    """How full a model was.

    Args:
        share_full: of the looks at which as many callers as it has slots were spoken to or waited for a slot.
        active_slots: those spoken to, on average.
    """

    share_full: float
    active_slots: float

    @classmethod
    def of(cls, looks: Sequence[tuple[float, float]]) -> Filling:
        """Looks are pairs of callers spoken to and callers who wait."""
        return cls(
            statistics.mean(active + waiting >= SLOTS for active, waiting in looks),
            statistics.mean(active for active, _ in looks),
        )


@dataclass(frozen=True)
class Soak:
    """What came of it.

    Args:
        silence: seconds for each second of audio, by thirds of the time.
        filling: how full each model was.
    """

    minutes: float
    ledger: Ledger
    growth: Sequence[Growth]
    more_regions: int
    silence: Sequence[float]
    filling: Mapping[str, Filling]

    def complaints(self) -> Iterator[str]:
        yield from self.ledger.complaints
        for model, filling in self.filling.items():
            if filling.share_full < MIN_FULL:
                yield f"{model} had callers for all its slots at only {filling.share_full:.0%} of the looks"
        for growth in self.growth:
            yield from growth.complaints()
        if self.more_regions > 0:
            yield f"there are {self.more_regions} shared-memory regions more than before"
        first, *_, last = self.silence
        if last > first * (1 + MAX_MORE_SILENCE) + SILENCE_NOISE:
            yield f"listeners waited {first:.3f} s for each second of audio at first, {last:.3f} s at the end"


def soak(
    server: Server,
    gateway_url: str,
    gateway_pid: int,
    *,
    seconds: float,
    callers: int,
    gateway_callers: int,
    look_every_s: float = LOOK_EVERY_S,
) -> Soak:
    """Call a server for so long, and judge."""
    ledger = Ledger()
    address = f"127.0.0.1:{server.grpc_port}"
    watch = Watch(processes_of(server, gateway_pid), look_every_s)
    callers_seen: dict[str, list[tuple[float, float]]] = {model: [] for model in TALKERS}
    count = partial(count_callers, server, callers_seen, ledger, look_every_s)
    with crowd(address, gateway_url, ledger, callers=callers, gateway_callers=gateway_callers) as everybody:
        call_together(everybody, min(WARM_UP_S, seconds / 4))
        before, regions_before = at_rest(server, watch)
        began_s = time.monotonic()
        call_together(everybody, seconds, [watch.look_until, count])
        ended_s = time.monotonic()
        after, regions_after = at_rest(server, watch)
    return Soak(
        (ended_s - began_s) / 60,
        ledger,
        [Growth.of(name, looks, before[name], after[name]) for name, looks in watch.looks.items()],
        regions_after - regions_before,
        silence_by_third(ledger.silence, began_s, ended_s),
        {model: Filling.of(looks) for model, looks in callers_seen.items() if looks},
    )


def at_rest(server: Server, watch: Watch) -> tuple[dict[str, Look], int]:
    """The processes, and how many shared-memory regions there are, once whoever left early is gone."""
    if server.process.poll() is not None:
        raise SystemExit(f"tritonserver ended with status {server.process.returncode}; see {server.log_path}")
    deadline = time.monotonic() + PATIENCE_S
    try:
        while any(counted(server, "qwen3_tts_active_slots", model) for model in TALKERS):
            if time.monotonic() > deadline:
                raise SystemExit("slots are still taken minutes after the last caller")
            time.sleep(0.1)
    except OSError as error:
        raise SystemExit(f"tritonserver hangs: {error}; see {server.log_path}") from error
    return watch.look(), len(server.shared_memory_regions())


def count_callers(
    server: Server,
    seen: Mapping[str, list[tuple[float, float]]],
    ledger: Ledger,
    every_s: float,
    is_over: threading.Event,
) -> None:
    try:
        while not is_over.wait(every_s) and server.process.poll() is None:
            page = metrics_page(server)
            for model, looks in seen.items():
                active, *waiting = (counted_on(page, gauge, model) for gauge in GAUGES)
                looks.append((active, sum(waiting)))
    except OSError as error:
        ledger.complain(f"the metrics page does not come: {error}")
        is_over.set()


def main() -> None:
    options = parse_options()
    meter = MachineMeter()
    build_all(ROOT / "checkpoints" / "tiny")
    store = {"VOICE_STORE": str(ROOT / ".server" / "soak-voices")}
    with serving(MODELS, store, log="soak.log") as server, gateway_of(server) as gateway:
        found = soak(
            server,
            gateway.url,
            gateway.pid,
            seconds=60 * options.minutes,
            callers=options.callers,
            gateway_callers=options.gateway_callers,
        )
        provenance = Provenance.of(meter)  # while the server still runs: its time is not the others'
    write_up(found, options, provenance).publish(options.results)
    if any(found.complaints()):
        sys.exit(1)


# --- the report -------------------------------------------------------------------------------------------


def write_up(found: Soak, options: argparse.Namespace, provenance: Provenance) -> Report:
    ledger = found.ledger
    kinds = sorted({kind for kind, _ in ledger.done})
    filling = "; ".join(
        f"{model} {one.share_full:.0%} and {one.active_slots:.1f}" for model, one in found.filling.items()
    )
    silence = ", ".join(f"{third:.3f}" for third in found.silence)
    return Report(
        title=f"A soak of {found.minutes:.0f} minutes",
        name=f"{device_kind()}-soak-tiny",
        method=METHOD.format(
            lines=sum(map(len, lines().values())),
            callers=options.callers,
            gateway_callers=options.gateway_callers,
            speak=DEEDS[SPEAK],
            leave=DEEDS[LEAVE],
            nonsense=DEEDS[NONSENSE],
            look_s=LOOK_EVERY_S,
            warm_up=WARM_UP_SHARE,
            max_mib=MAX_RISE_BYTES / 2**20,
            more=MAX_MORE,
            silence_ms=1000 * SILENCE_NOISE,
            full=MIN_FULL,
        ),
        sections=[
            verdict(found),
            table(("utterances", *DEEDS), [(k, *(ledger.done[k, deed] for deed in DEEDS)) for k in kinds]),
            table(
                ("process", "memory, MiB", "rise, MiB", "MiB an hour", "descriptors more", "threads more"),
                map(growth_row, found.growth),
            ),
            f"Shared-memory regions more than before: {found.more_regions}."
            f" Looks that found callers for all {SLOTS} slots of a model, and slots in use: {filling}."
            f" Silence for each second of audio, by thirds of the time: {silence} s.",
        ],
        figures={
            "minutes": found.minutes,
            "num_verified": ledger.num_verified,
            "num_wrong": ledger.num_complaints,
            "complaints": list(found.complaints()),
            "done": {f"{kind}: {deed}": count for (kind, deed), count in sorted(ledger.done.items())},
            "growth": [asdict(growth) for growth in found.growth],
            "more_regions": found.more_regions,
            "filling": {model: asdict(one) for model, one in found.filling.items()},
            "silence_per_audio_s_by_third": list(found.silence),
        },
        provenance=provenance,
    )


def verdict(found: Soak) -> str:
    ledger = found.ledger
    told = (
        f"{ledger.num_verified} utterances were heard to their end with every sample as it should be;"
        f" {sum(ledger.done.values())} requests ended as they should, warm-up included."
    )
    complaints = [f"* {complaint}" for complaint in found.complaints()]
    if not complaints:
        return f"{told} Nothing was wrong."
    return "\n".join([f"{told} {ledger.num_complaints} did not. **This was found:**\n", *complaints])


def growth_row(growth: Growth) -> tuple[object, ...]:
    return (
        growth.process,
        f"{growth.rss_bytes / 2**20:.0f}",
        f"{growth.rise_bytes / 2**20:.1f}",
        f"{growth.bytes_per_hour / 2**20:.1f}",
        growth.more_descriptors,
        growth.more_threads,
    )


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python perf/soak.py",
        description="Hold every sample of many callers against what it should be.",
    )
    parser.add_argument("--minutes", type=float, default=30.0, help="default: %(default)s")
    parser.add_argument("--callers", type=int, default=48, help="of each model that speaks")
    parser.add_argument("--gateway-callers", type=int, default=4)
    add_results_option(parser)
    return parser.parse_args()


if __name__ == "__main__":
    main()
