"""Bodies are read up to a limit, whether or not they say how long they are."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qwen3_tts_gateway.errors import TooLarge

MOST_BYTES = 16 << 20
"""A recording of 10 MiB as base64 text, and what stands around it."""


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
