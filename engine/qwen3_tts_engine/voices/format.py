"""A voice as bytes. Nothing here is ever unpickled.

Two pieces, the same in every store:

    object  a safetensors file: `speaker_embedding` F32 [D]; `ref_codes` I32 [frames, 16], absent if x-vector
            only; and everything else as JSON under the key `voice` of its `__metadata__`
    entry   JSON: what there is to read about the voice, and the SHA-256 of the whole object, which is its key

Source of the layout: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
import uuid
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors import numpy as safetensors

from qwen3_tts_engine.errors import EngineFailed, InvalidRequest, NotFound
from qwen3_tts_engine.request import VoicePrompt
from qwen3_tts_engine.voices.voice import Voice, VoiceSummary

VERSION = 1
SHA256 = re.compile("[0-9a-f]{64}")

SUMMARY_TYPES = {
    "name": str,
    "created_at": str,
    "model": str,
    "x_vector_only": bool,
    "ref_text": str,
    "metadata": dict,
}

# What reading bytes that are not ours can raise.
UNREADABLE = (
    SafetensorError,
    InvalidRequest,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    RecursionError,
    struct.error,
)


@dataclass(frozen=True)
class Entry:
    """What is read of a voice without its tensors.

    Args:
        summary: of the voice.
        digest: the SHA-256 of its object.
    """

    summary: VoiceSummary
    digest: str


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def write_object(voice: Voice) -> bytes:
    """No two are alike: a bucket has no lock, and whoever saves a voice anew removes the object it had, which
    must not be one that somebody else saves the same in this moment."""
    tensors: dict[str, Any] = {"speaker_embedding": np.ascontiguousarray(voice.prompt.speaker_embedding)}
    if voice.prompt.ref_codes is not None:
        tensors["ref_codes"] = np.ascontiguousarray(voice.prompt.ref_codes, dtype=np.int32)
    about = {
        "version": VERSION,
        "save": uuid.uuid4().hex,
        "name": voice.name,
        "created_at": voice.created_at,
        "model": voice.model,
        "ref_text": voice.prompt.ref_text,
        "metadata": voice.metadata,
    }
    return safetensors.save(tensors, {"voice": json.dumps(about)})


def read_object(name: str, digest: str, data: bytes) -> Voice:
    """The voice of an entry.

    Raises:
        EngineFailed: when these are not the bytes that were saved.
    """
    if digest_of(data) != digest:
        raise damaged(name, "its contents are not what was saved")
    try:
        about = json.loads(_metadata(data)["voice"])
        if (about["version"], about["name"]) != (VERSION, name):
            raise ValueError(f"it is {about['name']!r} in version {about['version']} of the format")
        tensors = safetensors.load(data)
        codes = tensors.get("ref_codes")
        return Voice(
            name=about["name"],
            prompt=VoicePrompt(
                tensors["speaker_embedding"],
                None if codes is None else codes.astype(np.int64),
                about["ref_text"],
            ),
            created_at=about["created_at"],
            model=about["model"],
            metadata=about["metadata"],
        )
    except UNREADABLE as error:
        raise damaged(name, str(error)) from error


def write_entry(voice: Voice, digest: str) -> bytes:
    return json.dumps({"object": digest, "voice": asdict(voice.summary)}).encode()


def read_entry(name: str, data: bytes) -> Entry:
    """Raise EngineFailed when these bytes are no entry; `name` says whose it should be."""
    try:
        raw = json.loads(data)
        if not SHA256.fullmatch(raw["object"]):
            raise ValueError(f"{raw['object']!r} is no SHA-256")
        if {key: type(value) for key, value in raw["voice"].items()} != SUMMARY_TYPES:
            raise ValueError(f"its entry has the fields {', '.join(raw['voice'])}")
        return Entry(VoiceSummary(**raw["voice"]), raw["object"])
    except UNREADABLE as error:
        raise damaged(name, str(error)) from error


def not_found(name: str) -> NotFound:
    return NotFound(f"there is no voice named {name!r}")


def damaged(name: str, reason: str) -> EngineFailed:
    return EngineFailed(
        f"the voice store holds voice {name!r} damaged: {reason}; save it again, or delete it"
    )


def _metadata(data: bytes) -> Any:
    """`__metadata__` of a safetensors file: the header's length in 8 bytes, then the header, in JSON."""
    (num_bytes,) = struct.unpack_from("<Q", data)
    return json.loads(data[8 : 8 + num_bytes])["__metadata__"]
