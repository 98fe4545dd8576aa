"""What the gateway refuses by itself, and how it and the client's errors are answered over HTTP.

    GatewayError
    ├── InvalidInput    the request can never be served as it stands
    ├── Unauthorized    no key, or none that is known and still valid
    ├── Forbidden       the key is not for this
    │   └── ForeignPage a web page of another origin calls
    ├── NotFound        no such thing, or none that belongs to this key
    ├── TooLarge        more bytes than are read
    ├── TooSlow         a body that takes longer than it is waited for
    ├── RateLimited     too much at once for this key; try again later
    └── ShuttingDown    this gateway begins nothing any more; another one does

The rest are the client's own (`qwen3_tts_client.SpeechError`): one table below answers them all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from qwen3_tts_client import (
    Cancelled,
    EngineFailed,
    InvalidRequest,
    KeyRefused,
    Overloaded,
    ServerUnavailable,
    SpeechError,
    UnknownVoice,
)


class GatewayError(Exception):
    """The root of what the gateway itself refuses.

    Attributes:
        param: the field of the request that is at fault, if it is one.
    """

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class InvalidInput(GatewayError):
    """The request can never be served as it stands; the message says what is allowed."""


def invalid_input(problem: Mapping[str, Any], location: Sequence[int | str], whole: str) -> InvalidInput:
    """What pydantic has to say, of the field at this location; where there is none, of the whole."""
    param = ".".join(map(str, location)) or None
    told = str(problem["msg"]).removeprefix("Value error, ")
    return InvalidInput(f"{param or whole}: {told}", param=param)


class Unauthorized(GatewayError):
    """No key was given, or none that is known and still valid."""


class Forbidden(GatewayError):
    """The key is known, and is not for this."""


class ForeignPage(Forbidden):
    """A web page of an origin that may not call."""


class NotFound(GatewayError):
    """There is no such thing, or it belongs to another key: nobody can tell which."""


class TooLarge(GatewayError):
    """The body or the file is larger than what is read."""


class TooSlow(GatewayError):
    """The body takes longer than it is waited for."""


class RateLimited(GatewayError):
    """The key's share is used up for now.

    Attributes:
        retry_after_s: when there will be room again.
    """

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class ShuttingDown(GatewayError):
    """This gateway begins nothing any more; another one does."""


@dataclass(frozen=True)
class Reply:
    """How a kind of error is answered.

    Attributes:
        status: of HTTP.
        type: as OpenAI's error object names it.
        code: likewise; stable, for programs.
        retry_after_s: for the Retry-After header, where trying again makes sense.
        message: in place of the error's own, which names hosts and files behind the gateway.
    """

    status: int
    type: str
    code: str
    retry_after_s: float | None = None
    message: str | None = None


# The first row that fits a kind of error or one of its bases, the nearest base first.
REPLIES: dict[type[Exception], Reply] = {
    InvalidInput: Reply(400, "invalid_request_error", "invalid_value"),
    Unauthorized: Reply(401, "authentication_error", "invalid_api_key"),
    Forbidden: Reply(403, "permission_error", "insufficient_scope"),
    ForeignPage: Reply(403, "permission_error", "origin_not_allowed"),
    NotFound: Reply(404, "invalid_request_error", "not_found"),
    TooSlow: Reply(408, "invalid_request_error", "too_slow"),
    TooLarge: Reply(413, "invalid_request_error", "too_large"),
    RateLimited: Reply(429, "rate_limit_error", "rate_limit_exceeded"),
    ShuttingDown: Reply(503, "server_error", "shutting_down", retry_after_s=5),
    UnknownVoice: Reply(404, "invalid_request_error", "voice_not_found"),
    # Of the gateway's own key; callers' never get so far.
    KeyRefused: Reply(
        502,
        "server_error",
        "misconfigured",
        message="the speech server does not accept this gateway's key; its operator has to mend that",
    ),
    InvalidRequest: Reply(400, "invalid_request_error", "invalid_value"),
    Overloaded: Reply(503, "server_error", "overloaded", retry_after_s=1),
    ServerUnavailable: Reply(
        503,
        "server_error",
        "unavailable",
        retry_after_s=5,
        message="the speech server, or the model that this takes, does not answer; try again later",
    ),
    Cancelled: Reply(503, "server_error", "shutting_down", retry_after_s=5),
    EngineFailed: Reply(
        500, "server_error", "engine_failed", message="the speech server failed at this; its log knows why"
    ),
}

KNOWN_ERRORS = (GatewayError, SpeechError)


def reply_to(error: Exception) -> Reply:
    """How to answer this error; its own `retry_after_s` wins over the table's."""
    reply = next(REPLIES[kind] for kind in type(error).__mro__ if kind in REPLIES)
    if isinstance(error, RateLimited):
        return replace(reply, retry_after_s=error.retry_after_s)
    return reply
