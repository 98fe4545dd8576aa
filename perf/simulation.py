"""The engine's real scheduler on a clock of its own: who would hear what when, if steps took so long.

Nothing is computed but time. Utterances come, speak as many frames as they have, and are voiced as the
scheduler says; what a step takes is an input. Every frame carries its number, so that none is lost unnoticed.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain

import numpy as np

from qwen3_tts_engine.chunking import FRAME_S
from qwen3_tts_engine.model.prompt import Prompt
from qwen3_tts_engine.profile import PROFILES
from qwen3_tts_engine.request import CODES_PER_FRAME, FRAME_SAMPLES, SpeechRequest
from qwen3_tts_engine.scheduler import Due, Scheduler
from qwen3_tts_engine.sequence import Chunk, FrameCap
from qwen3_tts_engine.sequence import Sequence as Utterance

EOS = -1  # utterances end by their length
MEAN_FRAMES, LEAST_FRAMES, MOST_FRAMES = 62, 12, 250  # 5 s; 1 s; 20 s
SPREAD_OF_FRAMES = 0.5  # of the lengths' logarithm
PROMPT_TOKENS = (10, 60)
SILENCE = np.zeros(0, np.float32)
REQUEST = SpeechRequest("Good morning.")


@dataclass(frozen=True)
class StepCosts:
    """What the device takes, in seconds.

    Args:
        name: of the device and the model.
        prefill_s: a call that reads prompts, and `prefill_token_s` for each token of it.
        frame_s: a frame of everyone, and `frame_row_s` for each of them.
        codec_s: a call of the codec, which decodes chunks of one length, and `codec_frame_s` for each frame.
    """

    name: str
    prefill_s: float
    prefill_token_s: float
    frame_s: float
    frame_row_s: float
    codec_s: float
    codec_frame_s: float

    def prefill(self, prompt_tokens: Sequence[int]) -> float:
        """Prompts that are read together are padded to the longest of them."""
        if not prompt_tokens:
            return 0.0
        return self.prefill_s + len(prompt_tokens) * max(prompt_tokens) * self.prefill_token_s

    def frame(self, rows: int) -> float:
        return self.frame_s + rows * self.frame_row_s

    def codec(self, chunk_frames: int, rows: int) -> float:
        return self.codec_s + chunk_frames * rows * self.codec_frame_s

    def audio_s_per_s(self, rows: int) -> float:
        """The most it can speak: so many rows without a pause, in chunks of 12 frames, each decoded alone."""
        step_s = self.frame(rows) + rows * (self.codec_s / 12 + self.codec_frame_s)
        return rows * FRAME_S / step_s


class Ramp(Scheduler):
    """A policy without a clock: chunks of growing, fixed lengths, and all that are due in one call."""

    ramp = PROFILES["balanced"].ramp

    def due(self, now_s: float) -> list[list[Due]]:
        return [[Due(s, len(s.pending)) for s in self.running if s.finish_reason or self._is_full(s)]]

    def _is_full(self, utterance: Utterance) -> bool:
        return len(utterance.pending) >= self.ramp[min(utterance.chunks_sent, len(self.ramp) - 1)]


class FixedChunks(Ramp):
    """Chunks of 12 frames from the first on."""

    ramp = (12,)


def scheduler_of(policy: str, slots: int) -> Scheduler:
    """A profile's, or one of the two policies it is compared with."""
    if policy in PROFILES:
        return Scheduler(slots, PROFILES[policy], EOS)
    return {"ramp alone": Ramp, "12 frames": FixedChunks}[policy](slots, PROFILES["balanced"], EOS)


POLICIES = (*PROFILES, "ramp alone", "12 frames")


@dataclass(frozen=True)
class Arrival:
    at_s: float
    prompt_tokens: int
    frames: int


def poisson_arrivals(count: int, audio_s_per_s: float, seed: int) -> list[Arrival]:
    """Callers who know nothing of each other and together ask for so much audio in a second, on average."""
    dice = np.random.default_rng(seed)
    lengths = dice.lognormal(math.log(MEAN_FRAMES) - SPREAD_OF_FRAMES**2 / 2, SPREAD_OF_FRAMES, count)
    frames = np.clip(lengths.round(), LEAST_FRAMES, MOST_FRAMES).astype(int)
    rate = audio_s_per_s / (frames.mean() * FRAME_S)
    times = np.cumsum(dice.exponential(1 / rate, count))
    tokens = dice.integers(*PROMPT_TOKENS, count)
    return [Arrival(float(t), int(n), int(f)) for t, n, f in zip(times, tokens, frames, strict=True)]


@dataclass
class Heard:
    """A listener: when the frames came, by number, and when there was silence meanwhile.

    Args:
        arrived_s: when they asked.
        voiced: the numbers of the frames in the order they were voiced.
        first_s: from the request to the first chunk.
        gaps_s: how long each silence after that was.
    """

    arrived_s: float
    voiced: list[int] = field(default_factory=list)
    first_s: float = math.nan
    gaps_s: list[float] = field(default_factory=list)
    ended_s: float = math.nan

    cancelled = False
    is_live = True

    def write(self, chunk: Chunk) -> None: ...


@dataclass(frozen=True)
class Outcome:
    """Everything that was heard, and how long it took from the first request to the last chunk."""

    listeners: Sequence[Heard]
    took_s: float
    codec_calls: int

    @property
    def frames(self) -> int:
        return sum(len(listener.voiced) for listener in self.listeners)


class Simulation:
    """One scheduler, one device, one list of arrivals."""

    def __init__(self, scheduler: Scheduler, costs: StepCosts, arrivals: Iterable[Arrival]) -> None:
        self._scheduler = scheduler
        self._costs = costs
        self._coming = deque(sorted(arrivals, key=lambda arrival: arrival.at_s))
        self._heard: list[Heard] = []
        self._codec_calls = 0
        self._now_s = 0.0

    def run(self) -> Outcome:
        started_s = self._coming[0].at_s
        while self._coming or not self._scheduler.is_idle:
            if self._scheduler.is_idle:
                self._now_s = max(self._now_s, self._coming[0].at_s)
            self._let_in()
            self._step()
        return Outcome(self._heard, self._now_s - started_s, self._codec_calls)

    def _let_in(self) -> None:
        while self._coming and self._coming[0].at_s <= self._now_s:
            arrival = self._coming.popleft()
            self._heard.append(Heard(arrival.at_s))
            self._scheduler.add(_utterance(arrival, self._heard[-1]))

    def _step(self) -> None:
        """As `Engine.step` does it."""
        plan = self._scheduler.schedule()
        self._now_s += self._costs.prefill([len(newcomer.prompt) for newcomer in plan.newcomers])
        self._now_s += self._costs.frame(len(plan.rows))
        codes = [[row.num_frames] * CODES_PER_FRAME for row in plan.rows]
        self._scheduler.commit(plan, np.array(codes))
        due = self._scheduler.due(self._now_s)
        for together in due:
            self._voice(together)
        for chunk in chain.from_iterable(due):
            if chunk.sequence.finish_reason:
                self._scheduler.release(chunk.sequence)

    def _voice(self, chunks: list[Due]) -> None:
        calls = Counter(chunk.num_frames for chunk in chunks if chunk.num_frames)
        self._codec_calls += len(calls)
        self._now_s += sum(self._costs.codec(length, rows) for length, rows in calls.items())
        for chunk in chunks:
            self._hand_out(chunk)

    def _hand_out(self, chunk: Due) -> None:
        utterance, listener = chunk.sequence, chunk.sequence.sink
        assert isinstance(listener, Heard)
        if not utterance.chunks_sent:
            listener.first_s = self._now_s - listener.arrived_s
        elif chunk.num_frames and utterance.playback.has_run_dry(self._now_s):
            listener.gaps_s.append(-utterance.playback.slack_s(self._now_s))
        frames = utterance.take_pending(chunk.num_frames)
        listener.voiced += [int(frame[0]) for frame in frames]
        listener.ended_s = self._now_s
        utterance.write(_sound(len(frames)), self._now_s)


def _utterance(arrival: Arrival, listener: Heard) -> Utterance:
    prompt = Prompt([0] * arrival.prompt_tokens, [0] * arrival.prompt_tokens, num_text_tokens=1)
    cap = FrameCap(arrival.frames, "length")
    return Utterance(REQUEST, prompt, listener, cap, seed=0, arrived_s=arrival.at_s)


def _sound(frames: int) -> np.ndarray:
    """So many frames of it; what it sounds like is nobody's business here."""
    return np.broadcast_to(np.float32(0), frames * FRAME_SAMPLES)
