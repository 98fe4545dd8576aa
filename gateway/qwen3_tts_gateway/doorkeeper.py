"""Who sends a body is asked before it is received, and whoever may send it has to be done in time."""

from __future__ import annotations

import anyio
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qwen3_tts_gateway.caller import HARMLESS, caller_of
from qwen3_tts_gateway.errors import TooSlow

BODY_TIMEOUT_S = 120
"""For a whole body: the largest, of 16 MiB, at 1.1 Mbit/s. A gateway that is stopped waits as long."""


class Doorkeeper:
    """Has the key looked at before FastAPI does, which reads and parses a body first.

    Whatever needs no key takes no body, so every body is a caller's. Who receives need not want a body: they
    listen for the caller's leaving, Starlette while it sends a file, and CancelOnDisconnect, further out.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] not in HARMLESS:
            receive = _Arrival(scope, receive).receive
        await self._app(scope, receive, send)


class _Arrival:
    """A body on its way in."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self._scope = scope
        self._receive = receive
        self._due_s: float | None = None
        self._is_complete = False

    async def receive(self) -> Message:
        """The next piece.

        Raises:
            Unauthorized, Forbidden: it is nobody's who may call, and was not received.
            TooSlow: it takes too long.
        """
        if self._is_complete:
            return await self._receive()
        if self._due_s is None:
            caller_of(HTTPConnection(self._scope))
            self._due_s = anyio.current_time() + BODY_TIMEOUT_S
        try:
            with anyio.fail_after(self._due_s - anyio.current_time()):
                message = await self._receive()
        except TimeoutError:
            raise TooSlow(f"the body did not come within {BODY_TIMEOUT_S:g} s") from None
        self._is_complete = not message.get("more_body", False)
        return message
