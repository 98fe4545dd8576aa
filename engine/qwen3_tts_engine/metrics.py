"""What the engine counts, by name; the Triton edge publishes it, tests read it, nobody else needs it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

OUTCOMES = ("ok", "invalid", "overloaded", "cancelled", "failed")
FINISH_REASONS = ("stop", "length", "runaway")


@dataclass(frozen=True)
class Family:
    """One Prometheus family. Every series carries `model` and `version`; `label` adds one more."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    description: str
    label: str = ""
    label_values: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


REQUESTS = Family("qwen3_tts_requests_total", "counter", "Requests answered, by outcome", "outcome", OUTCOMES)
FAILURES = Family(
    "qwen3_tts_engine_failures_total", "counter", "Steps and prompts that failed, with everyone in them"
)
FINISHES = Family(
    "qwen3_tts_finish_total", "counter", "Utterances spoken to an end, by reason", "reason", FINISH_REASONS
)
ACTIVE_SLOTS = Family("qwen3_tts_active_slots", "gauge", "Utterances being spoken")
SLOTS = Family("qwen3_tts_slots", "gauge", "Utterances that can be spoken at once")
WAITING = Family(
    "qwen3_tts_waiting_requests", "gauge", "Utterances that left Triton's queue and have no slot yet"
)
FRAMES = Family("qwen3_tts_frames_total", "counter", "Frames spoken, 80 ms each")
AUDIO_SECONDS = Family("qwen3_tts_audio_seconds_total", "counter", "Audio handed to callers")
UNDERRUNS = Family(
    "qwen3_tts_underruns_total", "counter", "Chunks handed out after their listener had nothing left to play"
)
FIRST_AUDIO = Family(
    "qwen3_tts_time_to_first_audio_seconds",
    "histogram",
    "From the request's arrival at the model to its first chunk",
    buckets=(0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2, 5, 10, 30, 60),
)
REAL_TIME_FACTOR = Family(
    "qwen3_tts_real_time_factor",
    "histogram",
    "Seconds from the request's arrival to its last chunk, per second of audio",
    buckets=(0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1, 1.25, 1.5, 2, 3, 5, 10),
)
STEP = Family(
    "qwen3_tts_step_seconds",
    "histogram",
    "One engine step: a frame of every utterance in flight, prefills and due chunks included",
    buckets=(0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.08, 0.12, 0.2, 0.4, 0.8, 1.6, 3),
)
FAMILIES = (
    REQUESTS,
    FAILURES,
    FINISHES,
    ACTIVE_SLOTS,
    SLOTS,
    WAITING,
    FRAMES,
    AUDIO_SECONDS,
    UNDERRUNS,
    FIRST_AUDIO,
    REAL_TIME_FACTOR,
    STEP,
)


class Metrics(Protocol):
    """Where measurements go. Must not block: the engine calls it between frames."""

    def add(self, family: Family, amount: float = 1, label: str = "") -> None:
        """Count something, or move a gauge by `amount`; several instances share one series."""

    def observe(self, family: Family, value: float) -> None:
        """Record one value of a histogram."""


class NoMetrics:
    """Counts nothing: for warm-up, and where nobody looks."""

    def add(self, family: Family, amount: float = 1, label: str = "") -> None: ...

    def observe(self, family: Family, value: float) -> None: ...
