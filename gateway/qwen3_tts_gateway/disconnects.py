"""A caller who hangs up, or takes nothing any more, stops the work that was done for them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

import anyio
from starlette.datastructures import Headers
from starlette.responses import StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qwen3_tts_gateway.errors import KNOWN_ERRORS
from qwen3_tts_gateway.observing import BrokenOff

log = logging.getLogger(__name__)

SEND_TIMEOUT_S = 120
"""For a caller to take what is sent; a slot that others could use waits meanwhile."""


class CancelOnDisconnect:
    """Stands around the application, and cancels what it does for a caller who is not there any more.

    Raises:
        BrokenOff: the caller is there, and the application has ended without the end of its answer.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        line = _Line(scope, receive, send)
        answering = asyncio.ensure_future(self._app(scope, line.receive, line.send))
        tasks = (answering, *map(asyncio.ensure_future, (line.hung_up(), line.is_stuck())))
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if answering.done():
                answering.result()
                if not line.is_answered:
                    raise BrokenOff
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


class _Line:
    """Between a caller and the application, which hears the request and never hears the caller leave."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self._was_heard = asyncio.Event()
        self._is_stuck = asyncio.Event()
        self.is_answered = False
        self._unheard: Message | None = None
        headers = Headers(scope=scope)
        if "transfer-encoding" not in headers and headers.get("content-length", "0") == "0":
            # Nobody may ever ask for a body that is not there.
            self._unheard = {"type": "http.request", "body": b"", "more_body": False}
            self._was_heard.set()

    async def receive(self) -> Message:
        if self._unheard is not None:
            message, self._unheard = self._unheard, None
            return message
        if self._was_heard.is_set():  # what can still come is the caller's leaving, which ends this task
            await asyncio.Event().wait()
        message = await self._receive()
        if not message.get("more_body", False):
            self._was_heard.set()
        return message

    async def send(self, message: Message) -> None:
        self.is_answered = message["type"] == "http.response.body" and not message.get("more_body", False)
        try:
            with anyio.fail_after(SEND_TIMEOUT_S):
                await self._send(message)
        except TimeoutError:
            log.warning("a caller takes nothing any more", extra={"waited_s": SEND_TIMEOUT_S})
            self._is_stuck.set()
            await asyncio.Event().wait()  # which ends this task

    async def is_stuck(self) -> None:
        """Return once the caller has taken nothing for too long."""
        await self._is_stuck.wait()

    async def hung_up(self) -> None:
        """Return once the caller has left an answer that is not complete."""
        await self._was_heard.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if self.is_answered:  # only the tidying up is left, and it is to be left alone
            await asyncio.Event().wait()


class LiveResponse(StreamingResponse):
    """A body sent as it comes into being.

    The first piece is there before the status is sent, so that whatever is refused is refused with a status
    of its own.
    """

    def __init__(self, first: bytes, rest: AsyncGenerator[bytes, None], **facts: Any) -> None:
        super().__init__(_joined(first, rest), **facts)
        self._rest = rest

    @classmethod
    async def begin(cls, pieces: AsyncGenerator[bytes, None], **facts: Any) -> LiveResponse:
        """Wait for the first piece of a body, then answer with it."""
        try:
            first = await anext(pieces, b"")
        except BaseException:
            await pieces.aclose()
            raise
        return cls(first, pieces, **facts)

    async def stream_response(self, send: Send) -> None:
        """A body that breaks off is left without its end, so that no caller takes a part for the whole."""
        # Cancelled while the network was busy, the generator would otherwise live on until it is collected.
        async with aclosing(self._rest):
            try:
                await super().stream_response(send)
            except KNOWN_ERRORS as error:
                log.warning("an utterance broke off", extra={"reason": str(error)})


async def _joined(first: bytes, rest: AsyncGenerator[bytes, None]) -> AsyncIterator[bytes]:
    yield first
    async for piece in rest:
        yield piece
