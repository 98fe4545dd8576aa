"""A voice as callers hand it over: a recording in base64, a `data:` URL or a URL of an allowed host; or an
embedding.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
from fastapi import UploadFile
from pydantic import Field

from qwen3_tts_client import ClonedVoice, VoicePrompt
from qwen3_tts_gateway.errors import InvalidInput, TooLarge
from qwen3_tts_gateway.fetching import MAX_BYTES, fetch_recording
from qwen3_tts_gateway.threads import in_thread

_FLOAT32_MAX = float(np.finfo(np.float32).max)
Embedding = Annotated[
    list[Annotated[float, Field(ge=-_FLOAT32_MAX, le=_FLOAT32_MAX, allow_inf_nan=False)]],
    Field(min_length=1, max_length=8192, fail_fast=True),
]
"""What float32 can hold of a speaker embedding; which length is right, the checkpoint knows."""


def embedded_voice(embedding: Embedding) -> VoicePrompt:
    """A voice that is its embedding alone, without codes of a recording."""
    return VoicePrompt(np.array(embedding, np.float32), np.zeros((0, 16), np.int32), None)


@dataclass(frozen=True)
class Reference:
    """A recording as a caller hands it over, not to be opened before the caller is admitted.

    Attributes:
        given: base64, a `data:` URL, or a URL of an allowed host.
        ref_text: what is spoken in it; needed unless `x_vector_only`.
        param: what the request calls it.

    Raises:
        InvalidInput: the transcript is missing.
    """

    given: str = field(repr=False)
    ref_text: str | None
    x_vector_only: bool
    param: str

    def __post_init__(self) -> None:
        if not self.x_vector_only and not (self.ref_text or "").strip():
            raise InvalidInput(
                "ref_text is missing: say what is spoken in the recording, or set x_vector_only_mode",
                param="ref_text",
            )

    async def open(self, allowed_hosts: Collection[str]) -> ClonedVoice:
        """The voice in it: fetched or decoded; what is in the file is Triton's to find out.

        Raises:
            InvalidInput: it is empty, or neither base64 nor a URL that may be fetched.
            TooLarge: it is more than 10 MiB.
        """
        if "://" in self.given[:64] or self.given[:5].lower() == "data:":
            recording = await fetch_recording(self.given, allowed_hosts, param=self.param)
        else:
            recording = await in_thread(_decoded, self.given, self.param)
        return ClonedVoice(_checked(recording, MAX_BYTES, self.param), self.ref_text, self.x_vector_only)


async def uploaded_recording(file: UploadFile, *, most_bytes: int = MAX_BYTES, param: str) -> bytes:
    """The bytes of an uploaded file, of which no more are read than are allowed.

    Raises:
        InvalidInput: it is empty.
        TooLarge: it is more than `most_bytes`.
    """
    return _checked(await file.read(most_bytes + 1), most_bytes, param)


def _checked(recording: bytes, most_bytes: int, param: str) -> bytes:
    if len(recording) > most_bytes:
        raise TooLarge(f"{param} is larger than {most_bytes >> 20} MiB", param=param)
    if not recording:
        raise InvalidInput(f"{param} is empty", param=param)
    return recording


def _decoded(text: str, param: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise InvalidInput(f"{param} is neither base64 nor a data: or https: URL", param=param) from None
