"""How a chunk's samples look on the wire."""

from __future__ import annotations

import base64
import io
import wave

import numpy as np
from numpy.typing import NDArray

from qwen3_tts_engine.errors import InvalidRequest
from qwen3_tts_engine.request import SAMPLE_RATE


def pcm16(samples: NDArray[np.float32]) -> bytes:
    """Samples in [-1, 1] -> little-endian 16-bit, mono, rounded as libsndfile rounds them."""
    return np.rint(samples * 32767).astype("<i2").tobytes()


def wav(samples: NDArray[np.float32]) -> bytes:
    """A complete 16-bit mono WAV file."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(SAMPLE_RATE)
        writer.writeframes(pcm16(samples))
    return file.getvalue()


# What `audio_encoding` may say, and what turns the samples into bytes; None sends them as they are.
ENCODERS = {"float32": None, "pcm16_base64": pcm16, "wav_base64": wav}


def check(encoding: str) -> None:
    if encoding not in ENCODERS:
        raise InvalidRequest(f"audio_encoding is {encoding[:80]!r}; it must be one of {', '.join(ENCODERS)}")


def encode(samples: NDArray[np.float32], encoding: str) -> tuple[NDArray[np.float32], bytes]:
    """The `audio` tensor and the `encoded_audio` text, one of which is empty."""
    encoder = ENCODERS[encoding]
    if encoder is None:
        return samples, b""
    return samples[:0], base64.b64encode(encoder(samples))
