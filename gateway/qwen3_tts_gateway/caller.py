"""Who is calling, and whether they may."""

from __future__ import annotations

from datetime import datetime, timezone
from ipaddress import ip_address
from typing import Annotated, Any
from urllib.parse import urlsplit

from fastapi import Depends
from starlette.requests import HTTPConnection

from qwen3_tts_gateway.errors import Forbidden, ForeignPage, Unauthorized
from qwen3_tts_gateway.gateway import Gateway
from qwen3_tts_gateway.keys import Key, presented_key

HARMLESS = ("GET", "HEAD", "OPTIONS")
"""Methods that change nothing, say nothing and take no body."""


def gateway_of(connection: HTTPConnection) -> Gateway:
    return connection.app.state.gateway  # type: ignore[no-any-return]


def caller_of(connection: HTTPConnection, scope: str | None = None) -> Key:
    """The key that a request or a WebSocket came with.

    Args:
        scope: what the key must be for; None: anything.

    Raises:
        Unauthorized: it came with none that is known and valid.
        Forbidden: the key is not for this, or whoever sent it.
    """
    _refuse_foreign_page(connection)
    key = gateway_of(connection).keys.authenticate(
        presented_key(connection.headers), datetime.now(timezone.utc)
    )
    connection.state.key = key.name  # for the log
    if scope is not None and scope not in key.scopes:
        raise Forbidden(f"key {key.name!r} is not for this; it would need the scope {scope!r}")
    return key


def _refuse_foreign_page(connection: HTTPConnection) -> None:
    """Neither forms nor WebSockets wait for CORS: any page could have an open gateway speak, save, delete."""
    gate, origin = gateway_of(connection), connection.headers.get("origin")
    if origin is None or not gate.keys.is_open or connection.scope.get("method") in HARMLESS:
        return
    host = connection.headers.get("host", "")
    is_own = origin.partition("://")[2] == host and _is_ours_alone(host, gate.settings.host)
    if not is_own and not {origin, "*"} & {*gate.settings.cors_origins}:
        raise ForeignPage(f"pages of {origin} may not call; CORS_ORIGINS says which may")


def _is_ours_alone(host: str, listening_on: str) -> bool:
    """Whether this `Host` is no stranger's to point here.

    Whoever owns a name may let it mean this machine once their page is loaded (DNS rebinding). Addresses,
    `localhost` and the name in HOST are not theirs.
    """
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name in ("localhost", listening_on.lower()) or bool(ip_address(name))
    except ValueError:
        return False


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


async def _known_caller(connection: HTTPConnection) -> Key | None:
    """A stranger is answered all the same, and told less."""
    try:
        return caller_of(connection)
    except Unauthorized:
        return None


async def _gateway(connection: HTTPConnection) -> Gateway:
    return gateway_of(connection)


Gate = Annotated[Gateway, Depends(_gateway)]
Synth = Annotated[Key, _caller("synth")]
SynthOrNobody = Annotated[Key | None, Depends(_caller_or_nobody)]
KnownCaller = Annotated[Key | None, Depends(_known_caller)]
VoiceOwner = Annotated[Key, _caller("voices")]
