"""One utterance in flight: what has been spoken, what is left to say, and when it must end."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from qwen3_tts_engine.errors import InvalidRequest, SpeechError
from qwen3_tts_engine.playback import Playback
from qwen3_tts_engine.request import SAMPLE_RATE, SpeechRequest

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qwen3_tts_engine.model.prompt import Prompt

FinishReason = Literal["stop", "length", "runaway"]

# The runaway guard. Speech takes 3 to 6 frames a token; a slow, dramatic or spelled-out reading several
# times that. 30 frames (2.4 s) for every token and 20 s on top end a voice that has lost its way, no other.
RUNAWAY_FRAMES_PER_TOKEN = 30
RUNAWAY_FRAMES = 250


@dataclass(frozen=True)
class FrameCap:
    """After how many frames an utterance is ended, and what that is called."""

    frames: int
    reason: FinishReason


def frame_cap(max_frames: int | None, num_text_tokens: int, limit: int) -> FrameCap:
    """A cap the caller gave is the only one; otherwise the text's length bounds the speech.

    Raises:
        InvalidRequest: for a cap outside 1 to `limit`, or a prompt that leaves no room to speak.
    """
    if limit < 1:
        raise InvalidRequest(
            f"text has {num_text_tokens} tokens; with the rest of the prompt that is too long"
        )
    if max_frames is not None:
        if not 1 <= max_frames <= limit:
            raise InvalidRequest(f"max_frames is {max_frames}; this model allows 1 to {limit}")
        return FrameCap(max_frames, "length")
    guard = RUNAWAY_FRAMES + RUNAWAY_FRAMES_PER_TOKEN * num_text_tokens
    return FrameCap(guard, "runaway") if guard < limit else FrameCap(limit, "length")


@dataclass(frozen=True)
class Chunk:
    """One piece of audio on its way to the caller.

    Args:
        samples: float32 [n], mono, 24 kHz, in [-1, 1]; empty when the end came right after the last chunk.
        index: 0, 1, 2 … within the utterance.
        num_frames: frames of the utterance so far, these included.
        finish_reason: set on the last chunk only.
    """

    samples: NDArray[np.float32]
    index: int
    num_frames: int
    finish_reason: FinishReason | None


class AudioSink(Protocol):
    """Where an utterance goes: a Triton response sender, a test's list, a file."""

    @property
    def cancelled(self) -> bool:
        """Whether nobody listens any more; asked before every step."""

    @property
    def is_live(self) -> bool:
        """Whether each chunk is played as it comes; otherwise the utterance is wanted whole."""

    def write(self, chunk: Chunk) -> None:
        """Take the next chunk; must not block."""

    def close(self, error: SpeechError | None = None) -> None:
        """Called once, after the last chunk or instead of it."""


@dataclass(eq=False)
class Sequence:
    """A request, its prompt and its progress.

    `slot` is its place in the running batch, -1 while it waits, and `seated_s` when it got one.
    """

    request: SpeechRequest
    prompt: Prompt
    sink: AudioSink
    cap: FrameCap
    seed: int
    arrived_s: float
    slot: int = -1
    seated_s: float | None = None
    num_frames: int = 0
    chunks_sent: int = 0
    pending: list[NDArray[np.int64]] = field(default_factory=list)  # frames not yet voiced, [16] each
    finish_reason: FinishReason | None = None
    playback: Playback = field(init=False)

    def __post_init__(self) -> None:
        self.playback = Playback(dry_s=self.arrived_s if self.sink.is_live else math.inf)

    @property
    def position(self) -> int:
        """Where in the talker's context the next frame goes."""
        return len(self.prompt) + self.num_frames

    @property
    def slot_wait_s(self) -> float | None:
        """How long it waited for a slot; None when it never had one."""
        return None if self.seated_s is None else self.seated_s - self.arrived_s

    @property
    def next_text_token(self) -> int | None:
        """The text token that joins the next frame; None once the text is through."""
        step = self.num_frames
        return self.prompt.trailing[step] if step < len(self.prompt.trailing) else None

    @property
    def is_first_heard(self) -> bool:
        """Whether the next chunk is the first its caller hears; of a whole utterance, that is the last."""
        return not self.chunks_sent if self.sink.is_live else self.finish_reason is not None

    def add_frame(self, codes: NDArray[np.int64]) -> None:
        self.pending.append(codes)
        self.num_frames += 1
        if self.num_frames == self.cap.frames:
            self.finish_reason = self.cap.reason

    def pace_s(self, now_s: float) -> float:
        """How long a frame has taken since the first one was handed out; 0 before the second."""
        started_s = self.playback.started_s
        return 0.0 if started_s is None else (now_s - started_s) / max(1, self.num_frames - 1)

    def take_pending(self, num_frames: int) -> list[NDArray[np.int64]]:
        """The next frames to be voiced, oldest first."""
        frames, self.pending = self.pending[:num_frames], self.pending[num_frames:]
        return frames

    def write(self, samples: NDArray[np.float32], now_s: float) -> None:
        """Hand out what the frames taken last sound like; the last chunk says why it is the last."""
        self.playback.hear(len(samples) / SAMPLE_RATE, now_s)
        num_voiced = self.num_frames - len(self.pending)
        self.sink.write(Chunk(samples, self.chunks_sent, num_voiced, self.finish_reason))
        self.chunks_sent += 1
