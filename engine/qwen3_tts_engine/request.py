"""What a caller asks for, checked once at the door and trusted from there on."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from qwen3_tts_engine.errors import InvalidRequest

SAMPLE_RATE = 24_000
FRAME_SAMPLES = 1_920  # one frame: 16 codes, 80 ms
FRAMES_PER_SECOND = SAMPLE_RATE / FRAME_SAMPLES
CODES_PER_FRAME = 16
MAX_REFERENCE_FRAMES = 750  # a minute; the published models are prompted with seconds
# Of a speaker embedding; trained ones stay below 100. What bfloat16 or float16 cannot hold would become
# infinite, and every sum with it no number.
MAX_EMBEDDING_VALUE = 1e4


@dataclass(frozen=True)
class Sampling:
    """How one of the two language models draws its codes.

    Args:
        do_sample: False takes the most likely code.
        temperature: above 0; divides the logits.
        top_k: how many of the likeliest codes may be drawn; 0 for all.
        top_p: the probability mass they may cover, above 0 and up to 1.
    """

    do_sample: bool = True
    temperature: float = 0.9
    top_k: int = 50
    top_p: float = 1.0

    def check(self, prefix: str = "") -> None:
        """Raise InvalidRequest for a value no distribution can be drawn with; `prefix` completes its name."""
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise InvalidRequest(f"{prefix}temperature is {self.temperature:g}; it must be a number above 0")
        if self.top_k < 0:
            raise InvalidRequest(f"{prefix}top_k is {self.top_k}; it must be 0 (off) or more")
        if not 0 < self.top_p <= 1:
            raise InvalidRequest(f"{prefix}top_p is {self.top_p:g}; it must be above 0 and at most 1")


@dataclass(frozen=True)
class GenerationDefaults:
    """A checkpoint's generation_config.json, with upstream's own values for what it leaves out.

    Source: `Qwen3TTSModel._merge_generate_kwargs` of qwen-tts 0.1.1.
    """

    talker: Sampling = field(default_factory=Sampling)
    subtalker: Sampling = field(default_factory=Sampling)
    repetition_penalty: float = 1.05


@dataclass(frozen=True, eq=False)
class VoicePrompt:
    """A voice as a recording of it: what the base models speak with.

    Args:
        speaker_embedding: float32 [D], D being the talker's hidden size.
        ref_codes: int64 [frames, 16], the recording's frames; None: x-vector only, just the embedding.
        ref_text: what is said in the recording; needed with `ref_codes`.
    """

    speaker_embedding: NDArray[np.float32]
    ref_codes: NDArray[np.int64] | None = None
    ref_text: str = ""


def check_embedding(embedding: NDArray[np.float32]) -> None:
    """Raise InvalidRequest for a speaker embedding that nothing can be computed with."""
    if not (np.isfinite(embedding).all() and np.abs(embedding).max(initial=0.0) <= MAX_EMBEDDING_VALUE):
        raise InvalidRequest(
            f"speaker_embedding holds a value that is no number from {-MAX_EMBEDDING_VALUE:g}"
            f" to {MAX_EMBEDDING_VALUE:g}"
        )


def check_reference(codes: NDArray[np.int64], text: str, num_codes: int) -> None:
    """Raise InvalidRequest for reference frames that are none of `num_codes` codes, or have no transcript."""
    if codes.ndim != 2 or codes.shape[1] != CODES_PER_FRAME or not 1 <= len(codes) <= MAX_REFERENCE_FRAMES:
        raise InvalidRequest(
            f"ref_codes has shape {list(codes.shape)};"
            f" it must be [1 to {MAX_REFERENCE_FRAMES}, {CODES_PER_FRAME}]"
        )
    if not np.issubdtype(codes.dtype, np.integer):
        raise InvalidRequest(f"ref_codes is {codes.dtype}; codes are whole numbers")
    if codes.min() < 0 or codes.max() >= num_codes:
        raise InvalidRequest(
            f"ref_codes holds {codes.min()} to {codes.max()}; codes are 0 to {num_codes - 1}"
        )
    if not text.strip():
        raise InvalidRequest("ref_text is missing; ref_codes needs the words that are said in the recording")


@dataclass(frozen=True)
class SpeechRequest:
    """One utterance to speak.

    Args:
        text: what to say; stripped of white space at both ends.
        language: a language of the checkpoint or `Auto`, in any case.
        speaker: a built-in speaker in any case; None takes the checkpoint's first.
        instruct: a style instruction, or the description of a designed voice; None for none.
        voice: what a base checkpoint speaks with.
        seed: same seed, same request, same audio; None draws one.
        talker, subtalker: how the first code of a frame and the other fifteen are drawn.
        repetition_penalty: above 0; weakens first codes already spoken.
        max_frames: the only cap on the utterance when given; None lets the text decide.
        non_streaming_mode: the whole text before the first frame, or one token a frame; None as upstream.

    Raises:
        InvalidRequest: for values no checkpoint could accept.
    """

    text: str
    language: str = "Auto"
    speaker: str | None = None
    instruct: str | None = None
    voice: VoicePrompt | None = None
    seed: int | None = None
    talker: Sampling = field(default_factory=Sampling)
    subtalker: Sampling = field(default_factory=Sampling)
    repetition_penalty: float = 1.05
    max_frames: int | None = None
    non_streaming_mode: bool | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", self.text.strip())
        if not self.text:
            raise InvalidRequest("text is empty; say at least one word")
        self.talker.check()
        self.subtalker.check("subtalker_")
        if not (math.isfinite(self.repetition_penalty) and self.repetition_penalty > 0):
            raise InvalidRequest(
                f"repetition_penalty is {self.repetition_penalty:g}; it must be a number above 0"
            )
