"""Server-Sent Events, as https://html.spec.whatwg.org/multipage/server-sent-events.html frames them."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from qwen3_tts_gateway.errors import KNOWN_ERRORS

MEDIA_TYPE = "text/event-stream"
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # a proxy must not hold events back


def event(name: str, data: str | dict[str, Any]) -> bytes:
    """One event; its data has no line breaks of its own."""
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return f"event: {name}\ndata: {text}\n\n".encode()


async def narrated(
    pieces: AsyncGenerator[bytes, None],
    *,
    head: bytes = b"",
    audio: Callable[[bytes], bytes],
    failed: Callable[[Exception], bytes],
    done: Callable[[], bytes],
) -> AsyncGenerator[bytes, None]:
    """An utterance in events.

    Args:
        pieces: of its sound.
        head: what goes before the first piece, along with it.
        audio: a piece's event.
        failed: the last event of an utterance that breaks off.
        done: the last event of one that does not.

    Raises:
        GatewayError, SpeechError: before the first piece, so that a status of its own can answer it.
    """
    has_begun = False
    async with aclosing(pieces):
        try:
            async for piece in pieces:
                yield audio(piece) if has_begun else head + audio(piece)
                has_begun = True
        except KNOWN_ERRORS as error:
            if not has_begun:
                raise
            yield failed(error)
            return
    yield done()
