"""What can go wrong, as one tree.

    SpeechError
    ├── InvalidRequest      the request can never be served as it stands
    │   ├── UnknownVoice    it names a voice that nobody saved
    │   └── KeyRefused      Triton keeps this API to those who have its key
    ├── Overloaded          the server has no room for it now; try again later
    ├── ServerUnavailable   no server, no such model on it, or no audio from it within the time limit
    ├── Cancelled           someone stopped it: this side, or a server that shuts down
    └── EngineFailed        the server broke, or its answer is incomplete

Each carries the `request_id` under which the server's log knows the request.
"""

import re

import grpc


class SpeechError(Exception):
    """The root: catch this to catch whatever this package reports.

    Attributes:
        request_id: the id sent to Triton; empty for a question about the server itself.
    """

    def __init__(self, message: str, *, request_id: str = "") -> None:
        super().__init__(message)
        self.request_id = request_id


class InvalidRequest(SpeechError):
    """The request can never be served as it stands; the message says what is allowed."""


class UnknownVoice(InvalidRequest):
    """No voice is saved under the name that was given."""


class KeyRefused(InvalidRequest):
    """The API is restricted, and the client has no key or another one."""


class Overloaded(SpeechError):
    """The server's queue is full, or the request waited in it too long; try again later."""


class ServerUnavailable(SpeechError):
    """Nothing usable answers at the url: no server, no such model, or silence beyond the time limit."""


class Cancelled(SpeechError):
    """The utterance was stopped before its last chunk."""


class EngineFailed(SpeechError):
    """The server failed at it, or sent an answer with a hole or without an end."""


_NO_SUCH_MODEL = "unknown model"

# Triton's own words win over its codes: what it turns away at the door (a full queue, an input the model does
# not have) has no code at all, an unknown model shares NOT_FOUND with an unknown voice, and a refused key
# comes as UNAVAILABLE.
_KIND_BY_MESSAGE: dict[str, type[SpeechError]] = {
    "Exceeds maximum queue size": Overloaded,
    "Request timeout expired": Overloaded,
    _NO_SUCH_MODEL: ServerUnavailable,
    "is not at ready state": ServerUnavailable,
    "has stopped accepting new": ServerUnavailable,
    "Stream removed": ServerUnavailable,  # gRPC's UNKNOWN for a connection that broke behind a proxy
    "load failed for model": EngineFailed,
    "protocol is restricted": KeyRefused,
    "inference input": InvalidRequest,
    "unexpected shape": InvalidRequest,
    "batch size does not match": InvalidRequest,
    "batch-size must be": InvalidRequest,
    "expected number of inputs": InvalidRequest,
}

_KIND_BY_CODE: dict[grpc.StatusCode | None, type[SpeechError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.NOT_FOUND: UnknownVoice,
    grpc.StatusCode.ALREADY_EXISTS: InvalidRequest,
    grpc.StatusCode.FAILED_PRECONDITION: InvalidRequest,
    grpc.StatusCode.OUT_OF_RANGE: InvalidRequest,
    grpc.StatusCode.UNIMPLEMENTED: InvalidRequest,
    grpc.StatusCode.UNAUTHENTICATED: KeyRefused,
    grpc.StatusCode.PERMISSION_DENIED: KeyRefused,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Overloaded,
    grpc.StatusCode.UNAVAILABLE: ServerUnavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: ServerUnavailable,
    grpc.StatusCode.CANCELLED: Cancelled,
}


# What a model of this repository says no with begins with its code, for a stream's errors are mere text; an
# ensemble says before it which ensemble it is.
_CODED = re.compile(rf"(?:in ensemble '[^']*', )?({'|'.join(grpc.StatusCode.__members__)}): ")


def error_from_triton(
    code: grpc.StatusCode | None, message: str, *, url: str, request_id: str = ""
) -> SpeechError:
    """Triton's refusal in this package's terms, its words kept.

    Args:
        code: the status of the call; None for an error that came as text.
        message: with the code's name before it where one of this repository's models wrote it.
    """
    if named := _CODED.match(message):
        code, message = grpc.StatusCode[named[1]], message[named.end() :]
    kind = _KIND_BY_CODE.get(code, EngineFailed)
    # Where a model found fault with the caller's own words, it quotes them, and they may be Triton's.
    if not (named and kind in (InvalidRequest, UnknownVoice)):
        kind = next((told for words, told in _KIND_BY_MESSAGE.items() if words in message), kind)
    return kind(f"{url}: {message}" if kind is ServerUnavailable else message, request_id=request_id)


def is_unserved(error: SpeechError) -> bool:
    """Whether a server is there and has, or has loaded, no such model."""
    return isinstance(error, ServerUnavailable) and _NO_SUCH_MODEL in str(error)
