"""Who is calling, and whether they may."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Annotated, Any

from fastapi import Depends
from starlette.requests import HTTPConnection

from qwen3_tts_gateway.errors import Forbidden
from qwen3_tts_gateway.gateway import Gateway
from qwen3_tts_gateway.keys import Key, presented_key


def gateway_of(connection: HTTPConnection) -> Gateway:
    return connection.app.state.gateway  # type: ignore[no-any-return]


def caller_of(connection: HTTPConnection, scope: str) -> Key:
    """The key that a request or a WebSocket came with.

    Raises:
        Unauthorized: it came with none that is known and valid.
        Forbidden: the key is not for this.
    """
    key = gateway_of(connection).keys.authenticate(
        presented_key(connection.headers), datetime.now(timezone.utc)
    )
    connection.state.key = key.name  # for the log
    if scope not in key.scopes:
        raise Forbidden(f"key {key.name!r} is not for this; it would need the scope {scope!r}")
    return key


# Coroutines, though they await nothing: FastAPI would send plain functions to a thread, for every request.


def _caller(scope: str) -> Any:
    async def caller(connection: HTTPConnection) -> Key:
        return caller_of(connection, scope)

    return Depends(caller)


async def _caller_or_nobody(connection: HTTPConnection) -> Key | None:
    """For lists that applications ask for before they were given a key."""
    if presented_key(connection.headers) is None and not gateway_of(connection).keys.is_open:
        return None
    return caller_of(connection, "synth")


async def _gateway(connection: HTTPConnection) -> Gateway:
    return gateway_of(connection)


Gate = Annotated[Gateway, Depends(_gateway)]
Synth = Annotated[Key, _caller("synth")]
SynthOrNobody = Annotated[Key | None, Depends(_caller_or_nobody)]
VoiceOwner = Annotated[Key, _caller("voices")]
