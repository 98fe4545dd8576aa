"""A saved voice, checked when it is made: whoever holds one may trust it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen3_tts_engine.errors import InvalidRequest
from qwen3_tts_engine.request import VoicePrompt, check_embedding, check_reference
from qwen3_tts_engine.voices.names import check_name

# The published models have 1024 or 2048 values, and are prompted with seconds; these bound what is taken.
MAX_EMBEDDING_VALUES = 8192
MAX_TEXT_CHARACTERS = 4096
MAX_METADATA_BYTES = 16 << 10
NUM_CODES = 2048


@dataclass(frozen=True)
class VoiceSummary:
    """What there is to read about a voice; its fields are those of the JSON that `voices` answers with."""

    name: str
    created_at: str
    model: str
    x_vector_only: bool
    ref_text: str
    metadata: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Voice:
    """A voice prompt under a name.

    Args:
        name: kept in Unicode NFC.
        prompt: what a base model speaks with.
        created_at: ISO 8601, UTC.
        model: the checkpoint that made the prompt, as `identify` puts it.
        metadata: a JSON object, such as `{"consent": "…"}`, kept as it is.

    Raises:
        InvalidRequest: naming what is wrong with any of them.
    """

    name: str
    prompt: VoicePrompt
    created_at: str
    model: str
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", check_name(self.name))
        _check_embedding(self.prompt.speaker_embedding)
        if self.prompt.ref_codes is not None:
            check_reference(self.prompt.ref_codes, self.prompt.ref_text, NUM_CODES)
            _check_text(self.prompt.ref_text)
        _check_metadata(self.metadata)

    @property
    def summary(self) -> VoiceSummary:
        return VoiceSummary(
            name=self.name,
            created_at=self.created_at,
            model=self.model,
            x_vector_only=self.prompt.ref_codes is None,
            ref_text=self.prompt.ref_text,
            metadata=self.metadata,
        )


def read_metadata(text: str) -> dict[str, Any]:
    """The caller's JSON object.

    Raises:
        InvalidRequest: when it is none.
    """
    try:
        metadata = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"metadata is not valid JSON: {error}") from None
    if not isinstance(metadata, dict):
        raise InvalidRequest(f"metadata is {text[:80]!r}; it must be a JSON object")
    return metadata


def _check_embedding(embedding: NDArray[np.float32]) -> None:
    if embedding.dtype != np.float32 or embedding.ndim != 1:
        raise InvalidRequest(
            f"speaker_embedding is {embedding.dtype} of shape {list(embedding.shape)};"
            " it must be float32 of one dimension"
        )
    if not 1 <= embedding.size <= MAX_EMBEDDING_VALUES:
        raise InvalidRequest(
            f"speaker_embedding has {embedding.size} values; it must have 1 to {MAX_EMBEDDING_VALUES}"
        )
    check_embedding(embedding)


def _check_text(text: str) -> None:
    if len(text) > MAX_TEXT_CHARACTERS:
        raise InvalidRequest(f"ref_text has {len(text)} characters; it may have {MAX_TEXT_CHARACTERS}")


def _check_metadata(metadata: dict[str, Any]) -> None:
    try:
        num_bytes = len(json.dumps(metadata, ensure_ascii=False, allow_nan=False).encode())
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequest(f"metadata cannot be written as JSON: {error}") from None
    if num_bytes > MAX_METADATA_BYTES:
        raise InvalidRequest(f"metadata takes {num_bytes} bytes; it may take {MAX_METADATA_BYTES}")
