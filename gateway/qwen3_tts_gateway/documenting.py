"""What the OpenAPI document says of answers that no annotation describes: errors, audio, events."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from qwen3_tts_gateway import sse
from qwen3_tts_gateway.errors import REPLIES
from qwen3_tts_gateway.sound import FORMATS

Responses = dict[int | str, dict[str, Any]]

_BYTES = {"schema": {"type": "string", "format": "binary"}}
_RETRY_AFTER = {"description": "seconds until there may be room", "schema": {"type": "integer"}}
_WORTH_RETRYING = (429, 503)


class ErrorObject(BaseModel):
    """`param` is the field at fault, `code` is for programs, `message` for people."""

    message: str
    type: str
    param: str | None
    code: str


class OpenAIError(BaseModel):
    error: ErrorObject


class OriginalError(BaseModel):
    detail: str


def _errors(shape: type[BaseModel]) -> Responses:
    """Every status there is, and what it says about the request."""
    reasons: dict[int, list[str]] = {}
    for kind, reply in REPLIES.items():
        reasons.setdefault(reply.status, []).append((kind.__doc__ or kind.__name__).strip())
    return {
        status: {
            "model": shape,
            "description": "\n\n".join(dict.fromkeys(reasons[status])),
            **({"headers": {"Retry-After": _RETRY_AFTER}} if status in _WORTH_RETRYING else {}),
        }
        for status in sorted(reasons)
    }


def _events(*names: str) -> dict[str, Any]:
    """Each of the stream's events."""
    fields = {"event": {"enum": [*names]}, "data": {"type": "string"}}
    return {"schema": {"type": "object", "properties": fields, "required": [*fields]}}


OPENAI_ERRORS: Responses = {
    **_errors(OpenAIError),
    # Named, it also keeps FastAPI from announcing its own 422, which is answered as 400 here.
    "4XX": {"model": OpenAIError, "description": "Whatever else is wrong with the request."},
}
ORIGINAL_ERRORS: Responses = _errors(OriginalError)


class OneAudio(BaseModel):
    """A WAV file in base64."""

    audio: str
    sample_rate: int
    format: str


class SeveralAudios(BaseModel):
    """WAV files in base64, in the order of the texts."""

    audios: list[str]
    sample_rate: int
    format: str


SPEECH: Responses = {
    200: {
        "description": "The utterance, as a file or in events, whose data is JSON.",
        "content": {
            **{form.media_type: _BYTES for form in FORMATS.values()},
            sse.MEDIA_TYPE: _events("speech.audio.delta", "speech.audio.done", "speech.audio.error"),
        },
    }
}
WAV_OR_JSON: Responses = {
    200: {
        "model": OneAudio,
        "description": "A WAV file, or one in JSON.",
        "content": {"audio/wav": _BYTES},
    }
}
ZIP_OR_JSON: Responses = {
    200: {
        "model": SeveralAudios,
        "description": "A ZIP of WAV files, or all of them in JSON.",
        "content": {"application/zip": _BYTES},
    }
}
EVENTS: Responses = {
    200: {
        "description": "The utterance in events; the data of each `audio` is a WAV file in base64.",
        "content": {sse.MEDIA_TYPE: _events("metadata", "audio", "done", "error")},
    }
}
