"""Callers who ask for the same lines again and again, and check every sample that they hear.

They live in processes of their own, one for each model that speaks and one for the gateway, so that none
waits for another's interpreter lock.
"""

from __future__ import annotations

import io
import multiprocessing
import random
import threading
import time
import wave
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from typing import Any, Protocol

import httpx
import numpy as np
from numpy.typing import NDArray

from qwen3_tts_client import ClonedVoice, DesignedVoice, InvalidRequest, SpeechClient, SpeechError, Voice
from qwen3_tts_gateway.sound.encoder import to_int16

CUSTOM_VOICE, VOICE_DESIGN, BASE = TALKERS = (
    "qwen3_tts_custom_voice",
    "qwen3_tts_voice_design",
    "qwen3_tts_base",
)
SAVED = "soak grandpa"
TEXTS = (
    "Good morning.",
    "The coffee is ready, and so is the bread.",
    "你好，今天天气很好。",
    "One, two, three, and here we go again: nobody is surprised.",
)
FRAME_SAMPLES, SAMPLE_RATE = 1920, 24_000
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
MAX_COMPLAINTS = 3  # of one caller; then the run is over
PATIENCE_S = 120.0


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


def silence_s(chunks: Sequence[tuple[float, float]]) -> float:
    """How long a listener waits for chunks after the first: (arrival, seconds of audio), in order."""
    waited_s, dry_at_s = 0.0, chunks[0][0]
    for at_s, audio_s in chunks:
        waited_s += max(0.0, at_s - dry_at_s)
        dry_at_s = max(dry_at_s, at_s) + audio_s
    return waited_s


class WrongAudio(Exception):
    """What was heard is not what should have been."""


@dataclass
class Ledger:
    """What happened to one caller, or to many.

    Attributes:
        done: by kind of utterance and deed.
        complaints: what was wrong.
        silence: of each utterance heard to its end: when that was, its silence and its audio in seconds.
    """

    done: Counter[tuple[str, str]] = field(default_factory=Counter)
    complaints: list[str] = field(default_factory=list)
    silence: list[tuple[float, float, float]] = field(default_factory=list)

    @classmethod
    def of_all(cls, ledgers: Iterable[Ledger]) -> Ledger:
        found = cls()
        for ledger in ledgers:
            found.done += ledger.done
            found.complaints += ledger.complaints
            found.silence += ledger.silence
        return found

    def note(self, kind: str, deed: str, heard: Heard | None = None) -> None:
        self.done[kind, deed] += 1
        if heard is not None:
            audio_s = len(heard.samples) / SAMPLE_RATE
            self.silence.append((time.monotonic(), heard.silence_s, audio_s))

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


# --- ears -------------------------------------------------------------------------------------------------


class Ear(Protocol):
    """Hears lines from somebody."""

    def of(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """What is heard of what is spoken."""
        ...

    def hear(self, line: Line, most_chunks: int | None = None) -> Heard:
        """To the end, or only the first chunks."""
        ...

    def ask_nonsense(self, line: Line, dice: random.Random) -> None:
        """Raise InvalidRequest, if all is well."""
        ...


class TritonEar:
    """Hears lines from Triton."""

    def __init__(self, tts: SpeechClient) -> None:
        self._tts = tts

    def of(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        return samples

    def hear(self, line: Line, most_chunks: int | None = None) -> Heard:
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


# --- callers ----------------------------------------------------------------------------------------------


class Over(Protocol):
    """When to stop: an event of threads or of processes."""

    def is_set(self) -> bool: ...

    def set(self) -> None: ...


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
    dice: random.Random
    ledger: Ledger = field(default_factory=Ledger)

    def call_until(self, is_over: Over) -> None:
        while not is_over.is_set():
            line = self.dice.choice(self.lines)
            (deed,) = self.dice.choices(list(DEEDS), list(DEEDS.values()))
            try:
                self._do(deed, line)
            except (SpeechError, WrongAudio, httpx.HTTPError) as error:
                about = f"{line.kind}, to be {deed}, seed {line.seed}"
                self.ledger.complaints.append(f"{about}: {type(error).__name__}: {error}")
                if len(self.ledger.complaints) >= MAX_COMPLAINTS:
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


# --- many of them -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Group:
    """Callers who share a process, and what they ask for.

    Args:
        gateway_url: whom they ask instead of Triton.
        number: of the group; no two throw the same dice.
    """

    grpc_address: str
    gateway_url: str | None
    lines: Sequence[Line]
    num_callers: int
    number: int

    @contextmanager
    def gathered(self) -> Iterator[list[Caller]]:
        """All of them, once each line has been spoken alone by Triton."""
        with ExitStack() as stack:
            tts = stack.enter_context(SpeechClient(self.grpc_address, timeout_s=PATIENCE_S))
            ear: Ear = TritonEar(tts)
            alone = {line: ear.hear(line).samples for line in self.lines}
            if self.gateway_url is not None:
                http = httpx.Client(base_url=self.gateway_url, timeout=PATIENCE_S)
                ear = GatewayEar(stack.enter_context(http))
            yield [
                Caller(ear, self.lines, alone, random.Random(f"{self.number} {caller}"))
                for caller in range(self.num_callers)
            ]


def groups(
    grpc_address: str, gateway_url: str | None, *, callers: int, gateway_callers: int
) -> Iterator[Group]:
    """One for each model, and one for the gateway, of so many callers each."""
    said = lines()
    for number, its_lines in enumerate(said.values()):
        yield Group(grpc_address, None, its_lines, callers, number)
    if gateway_url is not None:
        named = [line for line in (*said[CUSTOM_VOICE], *said[BASE]) if line.kind in ("speaker", "saved")]
        yield Group(grpc_address, gateway_url, named, gateway_callers, len(said))


@contextmanager
def saved_voice(grpc_address: str) -> Iterator[None]:
    """The voice that some lines are spoken in, in the store."""
    with SpeechClient(grpc_address, timeout_s=PATIENCE_S) as tts:
        tts.voices.save(SAVED, ClonedVoice(hum(150.0), "Hm, hm, so it was."))
        yield
        with suppress(SpeechError):  # a server that has died is complained of already
            tts.voices.delete(SAVED)


def call_until(callers: Sequence[Caller], is_over: Over) -> Ledger:
    """Let all of them call, a thread each."""
    with ThreadPoolExecutor(len(callers)) as pool:
        calling = [pool.submit(caller.call_until, is_over) for caller in callers]
    for done in calling:
        done.result()
    return Ledger.of_all(caller.ledger for caller in callers)


class Crowd:
    """All groups, each in its process.

    Attributes:
        ledger: of everybody, from the first call on.
    """

    def __init__(self, doors: Sequence[Connection], is_over: Any) -> None:
        self._doors = doors
        self._is_over = is_over
        self.ledger = Ledger()

    def call_together(
        self, seconds: float, besides: Sequence[Callable[[threading.Event], None]] = ()
    ) -> None:
        """Let all of them call for so long, and others here do until then what they do."""
        self._is_over.clear()
        for door in self._doors:
            door.send(None)
        with ThreadPoolExecutor(len(besides) + 1) as pool:
            doing = [pool.submit(act, self._is_over) for act in besides]
            try:
                self._is_over.wait(seconds)
            finally:
                self._is_over.set()
        self.ledger = Ledger.of_all(door.recv() for door in self._doors)
        for done in doing:
            done.result()


@contextmanager
def crowd(
    grpc_address: str, gateway_url: str | None, *, callers: int, gateway_callers: int
) -> Iterator[Crowd]:
    """Everybody who will call, once each line has been spoken alone."""
    processes = multiprocessing.get_context("spawn")  # gRPC does not survive a fork
    is_over = processes.Event()
    with saved_voice(grpc_address), ExitStack() as stack:
        doors = []
        for group in groups(grpc_address, gateway_url, callers=callers, gateway_callers=gateway_callers):
            door, inner = processes.Pipe()
            process = processes.Process(target=attend, args=(group, is_over, inner))
            process.start()
            inner.close()
            stack.callback(process.join)
            stack.callback(door.close)
            door.recv()  # one group after the other: each line is to be spoken alone
            doors.append(door)
        yield Crowd(doors, is_over)


def attend(group: Group, is_over: Over, door: Connection) -> None:
    """A group's process: say when everybody is there, then call when told to, until the door is closed."""
    with group.gathered() as callers:
        door.send(None)
        with suppress(EOFError):
            while True:
                door.recv()
                door.send(call_until(callers, is_over))
