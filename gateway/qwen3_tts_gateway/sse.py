"""Server-Sent Events, as https://html.spec.whatwg.org/multipage/server-sent-events.html frames them."""

from __future__ import annotations

import json
from typing import Any

MEDIA_TYPE = "text/event-stream"
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # a proxy must not hold events back


def event(name: str, data: str | dict[str, Any]) -> bytes:
    """One event; its data has no line breaks of its own."""
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return f"event: {name}\ndata: {text}\n\n".encode()
