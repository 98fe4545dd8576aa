"""What a caller can speak with. The voice chooses the model: one table, below."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from qwen3_tts_client.errors import InvalidRequest


@dataclass(frozen=True)
class DesignedVoice:
    """A voice described in words, such as "a warm old storyteller"."""

    description: str


@dataclass(frozen=True)
class ClonedVoice:
    """The voice in a recording of 1 to 30 s.

    A client has the server listen to it once and keeps the voice prompt for its next utterances, for ten
    minutes and as long as the server has the same checkpoints.

    Attributes:
        recording: a file (WAV, FLAC, MP3, Ogg, Opus or M4A), or what is in one.
        transcript: what is said in it, word for word; required unless `x_vector_only`.
        x_vector_only: take no more than the speaker embedding: needs no transcript, and resembles less.

    Raises:
        InvalidRequest: the transcript is missing.
    """

    recording: str | Path | bytes = field(repr=False)
    transcript: str | None = None
    x_vector_only: bool = False

    def __post_init__(self) -> None:
        if not (self.x_vector_only or (self.transcript or "").strip()):
            raise InvalidRequest(
                "a cloned voice needs the transcript of its recording: say what is spoken in it, "
                "or set x_vector_only and settle for its timbre"
            )

    def read(self) -> bytes:
        """The recording, as it is in its file.

        Raises:
            OSError: the file cannot be read.
        """
        return self.recording if isinstance(self.recording, bytes) else Path(self.recording).read_bytes()


Voice: TypeAlias = str | DesignedVoice | ClonedVoice | None
"""A name, a `DesignedVoice` or a `ClonedVoice`; None is the checkpoint's first speaker.

A name is that of a built-in speaker, or of a saved voice, or a mix of saved voices such as `a(2)+b(1)`: the
weighted mean of their speaker embeddings, and no more than that (x-vector only).
"""


@dataclass(frozen=True)
class BuiltIn:
    """A speaker of the checkpoint."""

    name: str


@dataclass(frozen=True)
class Saved:
    """A voice the server keeps, or a mix of several."""

    name: str


@dataclass(frozen=True, eq=False)
class VoicePrompt:
    """What the server heard in a recording.

    Attributes:
        speaker_embedding: float32 [dim].
        ref_codes: int32 [num_frames, 16]; no frames stand for x-vector only.
        ref_text: the transcript that belongs to the codes.
    """

    speaker_embedding: npt.NDArray[np.float32]
    ref_codes: npt.NDArray[np.int32]
    ref_text: str | None

    @property
    def inputs(self) -> dict[str, Any]:
        """The tensors of the prompt by name, codes and their text only where there are any."""
        if not len(self.ref_codes):
            return {"speaker_embedding": self.speaker_embedding}
        return {
            "speaker_embedding": self.speaker_embedding,
            "ref_codes": self.ref_codes,
            "ref_text": self.ref_text,
        }


FoundVoice: TypeAlias = BuiltIn | Saved | DesignedVoice | VoicePrompt | None
"""A `Voice` about which there is nothing more to find out: see `VoiceFinder`."""

# kind of voice -> the model that speaks with it, and the inputs that say which voice it is
_ROUTES: dict[type, tuple[str, Callable[[Any], dict[str, Any]]]] = {
    type(None): ("qwen3_tts_custom_voice", lambda _: {}),
    BuiltIn: ("qwen3_tts_custom_voice", lambda speaker: {"speaker": speaker.name}),
    DesignedVoice: ("qwen3_tts_voice_design", lambda voice: {"instruct": voice.description}),
    Saved: ("qwen3_tts_base", lambda voice: {"voice": voice.name}),
    VoicePrompt: ("qwen3_tts_base", lambda prompt: prompt.inputs),
}

MODELS = tuple(dict.fromkeys(model for model, _ in _ROUTES.values()))


def route(voice: FoundVoice) -> tuple[str, dict[str, Any]]:
    """The model that speaks with this voice, and the inputs that name the voice to it."""
    for kind, (model, voice_inputs) in _ROUTES.items():
        if isinstance(voice, kind):
            return model, voice_inputs(voice)
    raise TypeError(f"a voice is a name, a DesignedVoice, a ClonedVoice or None, not {voice!r}")


def model_of(voice: FoundVoice) -> str:
    """The model that speaks with this voice."""
    return route(voice)[0]
