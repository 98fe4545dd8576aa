"""How a gateway shuts down: it says so, then takes nobody in, and ends what it has begun."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol


@dataclass
class Shutdown:
    """How far a gateway has got with it.

    Attributes:
        is_announced: readiness says no and every answer closes its connection, but who comes is served.
        has_begun: nobody can come any more; conversations end with the utterance they are at.
    """

    is_announced: bool = False
    has_begun: asyncio.Event = field(default_factory=asyncio.Event)


class CloseConnections:
    """Closes a kept connection with its next answer; closed between two, it may swallow a request."""

    def __init__(self, app: ASGIApp, shutdown: Shutdown) -> None:
        self._app = app
        self._shutdown = shutdown

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def say(message: Message) -> None:
            if message["type"] == "http.response.start" and self._shutdown.is_announced:
                MutableHeaders(scope=message)["Connection"] = "close"
            await send(message)

        await self._app(scope, receive, say)


class Conversing(WebSocketsSansIOProtocol):
    """A WebSocket that uvicorn does not cut: the conversation closes it when its utterance is spoken."""

    def shutdown(self) -> None:
        if not self.handshake_complete:
            super().shutdown()


class Server(uvicorn.Server):
    """uvicorn that announces its end.

    Args:
        shutdown: of the application.
        notice_s: from the announcement until the port is closed, for balancers to look and send nobody.
    """

    def __init__(self, app: ASGIApp, shutdown: Shutdown, notice_s: float, **options: Any) -> None:
        super().__init__(uvicorn.Config(app, ws=Conversing, **options))
        self._shutdown = shutdown
        self._notice_s = notice_s

    async def shutdown(self, sockets: Any = None) -> None:
        self._shutdown.is_announced = True
        await self._give_notice()
        self._shutdown.has_begun.set()
        await super().shutdown(sockets)

    async def _give_notice(self) -> None:
        """A second Ctrl-C waits for nothing."""
        loop = asyncio.get_running_loop()
        ends_at_s = loop.time() + self._notice_s
        while not self.force_exit and (left_s := ends_at_s - loop.time()) > 0:
            await asyncio.sleep(min(left_s, 0.1))  # uvicorn looks as often; a signal wakes nobody
