"""How to reach a server and how to ask it: what the two clients share, whether or not they await."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import grpc
from tritonclient.grpc import service_pb2_grpc

from qwen3_tts_client.errors import ServerUnavailable, SpeechError, error_from_triton, is_unserved
from qwen3_tts_client.finding import VoiceFinder
from qwen3_tts_client.request import SpeechOptions, Utterance, speech_request
from qwen3_tts_client.voice import FoundVoice, Voice

_CHANNEL_OPTIONS = [
    # Triton's own limit, instead of gRPC's 4 MB.
    ("grpc.max_send_message_length", 2**31 - 1),
    ("grpc.max_receive_message_length", 2**31 - 1),
    # A server with gRPC's defaults takes one ping in 5 min of silence, and closes the connection of whoever
    # pings more often ("too_many_pings"). What is sent into a connection that is dead is noticed sooner: the
    # timeout is TCP's, too, for whatever is not acknowledged.
    ("grpc.keepalive_time_ms", 310_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 0),
    ("grpc.http2.max_pings_without_data", 0),
    # A server that is back is found within a second; by gRPC's defaults it can take two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
]

FAREWELL_S = 1.0
"""How long a finished stream waits for the server to hang up first, so that no log calls it cancelled."""


@dataclass(frozen=True)
class ServerInfo:
    """What the server says it is: `triton`, and its version, such as `2.51.0`."""

    name: str
    version: str


class Connection:
    """A server's address, the keys to it, the streams open on it, and the voices found there."""

    _grpc: ClassVar[ModuleType]  # grpc, or grpc.aio

    def __init__(
        self,
        url: str = "localhost:8001",
        *,
        timeout_s: float = 30.0,
        queue_timeout_s: float = 0.0,
        ssl: bool = False,
        root_certificates: str | Path | None = None,
        private_key: str | Path | None = None,
        certificate_chain: str | Path | None = None,
        api_key: str | None = None,
        headers: Mapping[str, str] | Callable[[], Mapping[str, str]] | None = None,
    ) -> None:
        """Open nothing yet: the first request connects.

        Args:
            url: host and gRPC port of Triton, without a scheme.
            timeout_s: longest wait for a chunk, or for the answer to any other question.
            queue_timeout_s: how much longer the first chunk may take, as an utterance may have to wait in the
                server's queue; as long as the server, asked every `timeout_s`, says that it is alive.
            ssl: use TLS; any of the three PEM files below implies it.
            root_certificates: whom to trust; absent, the system's authorities.
            private_key: this client's key, where the server asks for one (mutual TLS).
            certificate_chain: this client's certificate, likewise.
            api_key: key of Triton's restricted API, sent as `Bearer <key>`.
            headers: further gRPC metadata for every request; a function is asked for each anew.
        """
        self.url = url
        self.timeout_s = timeout_s
        self.queue_timeout_s = queue_timeout_s
        self._credentials = _credentials(ssl, root_certificates, private_key, certificate_chain)
        self._api_key = api_key
        self._headers = headers
        self._open_streams: set[Any] = set()
        self._finder = VoiceFinder()
        self._lock = threading.Lock()
        self._is_closed = False
        self._channel: Any = None
        self._service: Any = None

    @property
    def _metadata(self) -> tuple[tuple[str, str], ...]:
        headers = self._headers() if callable(self._headers) else self._headers
        return _metadata(self._api_key, headers or {})

    @property
    def _stub(self) -> Any:
        """The service, connected on first use: a channel of grpc.aio belongs to the loop it is made in.

        Raises:
            ServerUnavailable: the client was closed.
        """
        if self._is_closed:
            raise ServerUnavailable(f"{self.url}: this client was closed")
        with self._lock:
            if self._service is None:
                self._channel = self._open_channel()
                self._service = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
            return self._service

    def _open_channel(self) -> Any:
        if self._credentials is None:
            return self._grpc.insecure_channel(self.url, _CHANNEL_OPTIONS)
        return self._grpc.secure_channel(self.url, self._credentials, _CHANNEL_OPTIONS)

    def _prepare(
        self, text: str, voice: Voice | FoundVoice, language: str | None, options: SpeechOptions
    ) -> Utterance:
        request = speech_request(text, language=language, **options)
        timeout_s = options.get("timeout_s")
        timeout_s = self.timeout_s if timeout_s is None else timeout_s
        return Utterance(request, voice, self.url, timeout_s, self.queue_timeout_s)

    def _error(self, error: grpc.RpcError, request: Any) -> SpeechError:
        request_id = getattr(request, "id", "")
        told = error_from_triton(error.code(), error.details(), url=self.url, request_id=request_id)
        if isinstance(told, ServerUnavailable) and not is_unserved(told):
            self._finder.forget()
        return told


def _credentials(
    ssl: bool,
    root_certificates: str | Path | None,
    private_key: str | Path | None,
    certificate_chain: str | Path | None,
) -> grpc.ChannelCredentials | None:
    files = (root_certificates, private_key, certificate_chain)
    if not ssl and files == (None, None, None):
        return None
    return grpc.ssl_channel_credentials(*(path and Path(path).read_bytes() for path in files))


def _metadata(api_key: str | None, headers: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    # Never `triton_grpc_error: true`: docs/decisions/0018-an-error-names-its-code.md.
    metadata = {}
    if api_key is not None:
        metadata["triton-grpc-protocol-authorization"] = f"Bearer {api_key}"
    metadata |= {name.lower(): value for name, value in headers.items()}
    return tuple(metadata.items())
