"""What operators see: a request id on every answer, one log line and the metrics of every request.

Neither texts nor recordings nor keys are logged; a key is known by its name.
"""

from __future__ import annotations

import logging
import logging.config
import re
import time
import uuid
from contextvars import ContextVar

from prometheus_client import Counter, Gauge, Histogram, disable_created_metrics
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger(__name__)

disable_created_metrics()  # when each series began, which doubles their number

FIRST_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2, 5, 10, 30)

REQUESTS = Counter(
    "qwen3_tts_gateway_requests", "Requests answered; status 499: the caller hung up", ["route", "status"]
)
KEY_REQUESTS = Counter(
    "qwen3_tts_gateway_key_requests", "Requests answered, of callers whose key is known", ["key", "status"]
)
KEY_FIRST_AUDIO = Histogram(
    "qwen3_tts_gateway_key_first_audio_seconds",
    "From the beginning of an utterance that is streamed to its first audio",
    ["key"],
    buckets=FIRST_BUCKETS_S,
)
KEY_AUDIO = Counter("qwen3_tts_gateway_key_audio_seconds", "Audio that was spoken, as it is heard", ["key"])
KEY_WAITED = Counter(
    "qwen3_tts_gateway_key_waited_seconds",
    "How long that audio was waited for; over the audio itself, the real-time factor that a key sees",
    ["key"],
)
IN_FLIGHT = Gauge(
    "qwen3_tts_gateway_requests_in_flight", "Requests and utterances of conversations being answered"
)
FIRST_BYTE = Histogram(
    "qwen3_tts_gateway_first_byte_seconds",
    "From a request's arrival to the first byte of its answer's body",
    ["route"],
    buckets=FIRST_BUCKETS_S,
)
DURATION = Histogram(
    "qwen3_tts_gateway_request_seconds",
    "From a request's arrival to the end of its answer",
    ["route"],
    buckets=(0.01, 0.05, 0.1, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 660),
)
LIMITS_STORE_FAILURES = Counter(
    "qwen3_tts_gateway_limits_store_failures", "Times that LIMITS_STORE failed, so that nobody was limited"
)
SENT = Counter("qwen3_tts_gateway_sent_bytes", "Bytes of answers' bodies", ["route"])

GONE = 499
"""The caller hung up, as nginx logs it."""
FAILED = 500
"""What began well broke off, and the caller was there."""

_NO_ROUTE = "none"  # a label for each wrong path would be a label for each visitor
_REQUEST_ID = re.compile(r"[\w.\-]{1,64}")

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""Of the request that is being answered in this task."""


class BrokenOff(Exception):
    """An answer stays without its end, and not because the caller has left."""


class Observer:
    """Stands around the whole application, the one place that sees every answer end."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        observe = {"http": self._answer, "websocket": self._shake_hands}.get(scope["type"])
        if observe is None:
            await self._app(scope, receive, send)
            return
        token = request_id.set(_id_of(scope))
        try:
            await observe(scope, receive, send)
        finally:
            request_id.reset(token)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = Answer(scope, send)
        try:
            await self._app(scope, receive, answer.send)
        except BrokenOff:
            answer.end(FAILED)
        finally:
            answer.end(GONE)  # what was not complete by now never will be

    async def _shake_hands(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, Handshake(scope, send).send)


def _id_of(scope: Scope) -> str:
    """The caller's own, if a log can hold it."""
    given = Headers(scope=scope).get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


class Handshake:
    """How a WebSocket begins: counted if it does not. A conversation accounts for its utterances itself."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self._scope = scope
        self._send = send

    async def send(self, message: Message) -> None:
        if message["type"] == "websocket.http.response.start":
            Account(self._scope).end(message["status"])
        if message["type"] in ("websocket.accept", "websocket.http.response.start"):
            MutableHeaders(scope=message)["X-Request-Id"] = request_id.get()
        await self._send(message)


class Answer:
    """One request's answer on its way out."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self._send = send
        self._account = Account(scope)
        self._status = GONE

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            MutableHeaders(scope=message)["X-Request-Id"] = request_id.get()
        elif message["type"] == "http.response.body":
            self._account.add(len(message.get("body", b"")))
        await self._send(message)
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self._account.end(self._status)  # before the caller can ask for the numbers

    def end(self, status: int) -> None:
        """Nothing more comes, in spite of what was promised."""
        self._account.end(status)


class Account:
    """What is counted and logged of one answer, over HTTP or in a conversation, once.

    Attributes:
        num_bytes: that went out so far.
    """

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        self._began_s = time.perf_counter()
        self.num_bytes = 0
        self._first_byte_s: float | None = None
        self._has_ended = False
        IN_FLIGHT.inc()

    def add(self, num_bytes: int) -> None:
        """So much goes out."""
        if num_bytes and self._first_byte_s is None:
            self._first_byte_s = time.perf_counter() - self._began_s
        self.num_bytes += num_bytes

    def end(self, status: int) -> None:
        """Nothing more comes; what is told after that is not heard."""
        if self._has_ended:
            return
        self._has_ended = True
        IN_FLIGHT.dec()
        duration_s = time.perf_counter() - self._began_s
        route = getattr(self._scope.get("route"), "path", _NO_ROUTE)
        key = self._scope.get("state", {}).get("key", "")  # its name, as `caller_of` found it
        REQUESTS.labels(route, status).inc()
        if key:
            KEY_REQUESTS.labels(key, status).inc()
        DURATION.labels(route).observe(duration_s)
        SENT.labels(route).inc(self.num_bytes)
        if self._first_byte_s is not None:
            FIRST_BYTE.labels(route).observe(self._first_byte_s)
        log.info(
            "answered",
            extra={
                "method": self._scope.get("method", "WEBSOCKET"),
                "route": route,
                "status": status,
                "key": key,
                "duration_ms": round(duration_s * 1e3, 1),
                "first_byte_ms": self._first_byte_s and round(self._first_byte_s * 1e3, 1),
                "sent_bytes": self.num_bytes,
            },
        )


class _RequestIdFilter(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        if identity := request_id.get():
            record.request_id = identity
        return True


def log_as_json(level: str) -> None:
    """One JSON object on a line, to stderr, the libraries' messages among them."""
    quiet = "ERROR" if level == "ERROR" else "WARNING"
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "filters": {"request_id": {"()": _RequestIdFilter}},
            "formatters": {
                "json": {
                    "()": "pythonjsonlogger.json.JsonFormatter",
                    "fmt": "%(asctime)s %(levelname)s %(name)s %(message)s",
                    "rename_fields": {"asctime": "time", "levelname": "level", "name": "logger"},
                }
            },
            "handlers": {
                "stderr": {
                    "class": "logging.StreamHandler",
                    "formatter": "json",
                    "filters": ["request_id"],
                }
            },
            # What a library tells at DEBUG, nobody here has looked through for texts and keys.
            "root": {"level": "INFO" if level == "DEBUG" else level, "handlers": ["stderr"]},
            "loggers": {
                "qwen3_tts_gateway": {"level": level},
                # At INFO both tell URLs with their queries; at DEBUG uvicorn tells what a WebSocket carries.
                "httpx": {"level": quiet},
                "uvicorn": {"level": quiet},
            },
        }
    )
