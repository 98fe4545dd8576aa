"""The shipped proxy: TLS for callers and for gateways from elsewhere, and no metrics for either."""

from __future__ import annotations

import socket
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from callers import assert_same_audio
from gateway_server import GatewayServer
from haproxy_server import Balancer
from qwen3_tts_client import SpeechClient
from qwen3_tts_engine.launch.ports import free_ports
from qwen3_tts_engine.launch.server import Server

pytestmark = pytest.mark.triton

SPEECH = "/v1/audio/speech"
PCM = {"input": "Hello.", "voice": "ryan", "response_format": "pcm", "seed": 3}


@dataclass(frozen=True)
class Proxy:
    authority: Path
    https: str
    grpcs: str
    http: str

    def caller(self) -> httpx.Client:
        trusted = ssl.create_default_context(cafile=self.authority)
        return httpx.Client(base_url=self.https, verify=trusted, timeout=60)


@pytest.fixture(scope="module")
def proxy(
    server: Server, real_gateway: GatewayServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Proxy]:
    folder = tmp_path_factory.mktemp("haproxy")
    authority, certificate = certified(folder)
    https_port, grpcs_port = free_ports(2)
    balancer = Balancer(folder)
    addresses = {
        "TRITON_A": f"127.0.0.1:{server.grpc_port}",
        "TRITON_A_HTTP_PORT": str(server.http_port),
        "GATEWAY_A": real_gateway.url.removeprefix("http://"),
        "HTTPS_ADDRESS": f"127.0.0.1:{https_port}",
        "GRPCS_ADDRESS": f"127.0.0.1:{grpcs_port}",
        "CERTIFICATE": str(certificate),
    }
    with balancer.running(addresses):
        for backend in ("triton", "gateways"):
            balancer.wait_until_up(f"{backend}/a")
        yield Proxy(
            authority,
            f"https://localhost:{https_port}",
            f"localhost:{grpcs_port}",
            f"http://127.0.0.1:{balancer.http_port}",
        )


def certified(folder: Path) -> tuple[Path, Path]:
    """A certificate for localhost, alone and with its key behind it."""
    command = (
        "openssl req -x509 -nodes -days 2 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -subj /CN=localhost"
    )
    names = "-addext subjectAltName=DNS:localhost -keyout key.pem -out authority.pem"
    subprocess.run([*command.split(), *names.split()], cwd=folder, check=True, capture_output=True)
    authority, both = folder / "authority.pem", folder / "speech.pem"
    both.write_text(authority.read_text() + (folder / "key.pem").read_text())
    return authority, both


def test_callers_speak_with_it_by_tls(proxy: Proxy) -> None:
    with proxy.caller() as caller:
        answer = caller.post(SPEECH, json=PCM)
    assert answer.status_code == 200
    assert answer.content == httpx.post(f"{proxy.http}{SPEECH}", json=PCM, timeout=60).content


def test_callers_may_choose_http2_and_gateways_get_it(proxy: Proxy) -> None:
    for address in (proxy.https.removeprefix("https://"), proxy.grpcs):
        trusted = ssl.create_default_context(cafile=proxy.authority)
        trusted.set_alpn_protocols(["h2"])
        host, port = address.split(":")
        with (
            socket.create_connection((host, int(port)), timeout=20) as plain,
            trusted.wrap_socket(plain, server_hostname=host) as encrypted,
        ):
            assert encrypted.selected_alpn_protocol() == "h2"


def test_gateways_from_elsewhere_reach_triton_by_tls(proxy: Proxy, server: Server) -> None:
    asked = {"voice": "ryan", "seed": 3, "max_frames": 10}
    with SpeechClient(proxy.grpcs, timeout_s=60, root_certificates=proxy.authority) as tts:
        through_it = tts.synthesize("Hello.", **asked)
    with SpeechClient(f"127.0.0.1:{server.grpc_port}", timeout_s=60) as tts:
        assert_same_audio(through_it.samples, tts.synthesize("Hello.", **asked).samples)


@pytest.mark.parametrize("path", ["/metrics", "/metrics/", "/metrics?x=1", "/%6detrics", "/%6Detrics/"])
def test_nobody_reads_the_metrics_through_it(proxy: Proxy, real_gateway: GatewayServer, path: str) -> None:
    assert httpx.get(f"{real_gateway.url}/metrics", timeout=60).status_code == 200
    with proxy.caller() as caller:
        assert caller.get(path).status_code == 403
    assert httpx.get(f"{proxy.http}{path}", timeout=60).status_code == 403


def test_without_a_certificate_it_has_no_tls(real_gateway: GatewayServer, tmp_path: Path) -> None:
    """As on one machine, where all come by loopback."""
    balancer = Balancer(tmp_path)
    with balancer.running({"GATEWAY_A": real_gateway.url.removeprefix("http://")}):
        balancer.wait_until_up("gateways/a")
        assert httpx.get(f"http://127.0.0.1:{balancer.http_port}/health", timeout=60).status_code == 200
