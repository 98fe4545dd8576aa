import socket
import subprocess
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from fakes.triton_server import MODEL_INPUTS, says, triton
from qwen3_tts_client import AsyncSpeechClient, SpeechClient


class Awaited:
    """A `SpeechClient` that is awaited like the other, so that one test is for both."""

    def __init__(self, thing):
        self._thing = thing

    def __getattr__(self, name):
        value = getattr(self._thing, name)
        if not callable(value):
            return Awaited(value)

        async def call(*args, **kwargs):
            return value(*args, **kwargs)

        return call


@pytest.fixture(params=["waiting", "awaiting"])
def meeting(request):
    """A server with all models, and each of the two clients of it in turn."""

    @asynccontextmanager
    async def meet(script=None, *, models=tuple(MODEL_INPUTS), **facts):
        with triton(script or says(1), models=models, **facts) as server:
            if request.param == "waiting":
                with SpeechClient(server.url) as tts:
                    yield server, Awaited(tts)
            else:
                async with AsyncSpeechClient(server.url) as tts:
                    yield server, tts

    return meet


@pytest.fixture
def dead_url():
    """A port that is bound, so nobody else takes it, and that nobody listens on."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{bound.getsockname()[1]}"


@dataclass(frozen=True)
class Tls:
    """A self-signed certificate for localhost: its own authority, and both ends' identity."""

    private_key: Path
    certificate: Path

    @property
    def server_credentials(self) -> grpc.ServerCredentials:
        return grpc.ssl_server_credentials([self._pair])

    @property
    def mutual_server_credentials(self) -> grpc.ServerCredentials:
        return grpc.ssl_server_credentials([self._pair], self._pair[1], require_client_auth=True)

    @property
    def _pair(self) -> tuple[bytes, bytes]:
        return self.private_key.read_bytes(), self.certificate.read_bytes()


@pytest.fixture(scope="session")
def tls(tmp_path_factory) -> Tls:
    folder = tmp_path_factory.mktemp("tls")
    files = Tls(folder / "key.pem", folder / "cert.pem")
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=DNS:localhost"]
    out = ["-keyout", str(files.private_key), "-out", str(files.certificate)]
    subprocess.run([*command.split(), *names, *out], check=True, capture_output=True)
    return files
