"""Bodies: up to which length they are read, and what none of them may hold."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, field_validator
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qwen3_tts_gateway.errors import TooLarge

MOST_BYTES = 16 << 20
"""A recording of 10 MiB as base64 text, and what stands around it."""


class Body(BaseModel):
    """What a caller sends, text that is text."""

    @field_validator("*")
    @classmethod
    def _whole_characters(cls, value: Any) -> Any:
        """JSON can name half of a surrogate pair, which UTF-8, and so Triton, cannot be told."""
        texts = value if isinstance(value, list) else [value]
        if any(isinstance(text, str) and _has_half_a_character(text) for text in texts):
            raise ValueError("half of a surrogate pair is not a character")
        return value


def _has_half_a_character(text: str) -> bool:
    return not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text)


class BodyLimit:
    """Refuses to read more than `most_bytes` of a request."""

    def __init__(self, app: ASGIApp, most_bytes: int = MOST_BYTES) -> None:
        self._app = app
        self._most_bytes = most_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        left = self._most_bytes
        announced = Headers(scope=scope).get("content-length", "0")
        too_large = TooLarge(f"the body is larger than {self._most_bytes >> 20} MiB")

        async def limited() -> Message:
            nonlocal left
            if announced.isdecimal() and int(announced) > self._most_bytes:
                raise too_large
            message = await receive()
            left -= len(message.get("body", b""))
            if left < 0:
                raise too_large
            return message

        await self._app(scope, limited, send)
