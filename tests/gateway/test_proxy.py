"""The gateway behind a real proxy with TLS, configured as docs/security.md has it."""

from __future__ import annotations

import asyncio
import re
import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from websockets.asyncio.client import connect

from fakes.triton_server import Call, FakeTriton, chunk, final
from gateway_server import GatewayServer
from haproxy_server import haproxy_binary
from qwen3_tts_engine.launch.ports import free_ports
from real_server import ROOT, wait_until

SPEECH = "/v1/audio/speech"
PCM = {"input": "Hello.", "voice": "ryan", "response_format": "pcm"}


@pytest.fixture
def proxy(gateway: GatewayServer, tmp_path: Path) -> Iterator[httpx.Client]:
    """A caller of the proxy, who trusts its certificate."""
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl on this machine: apt-get install openssl")
    certificate, port = certified(tmp_path), free_ports(1)[0]
    sample = re.search(
        r"```text\n(# haproxy\.cfg\n.*?)```", (ROOT / "docs/security.md").read_text(), re.DOTALL
    )
    assert sample
    config = sample[1].replace("bind :443", f"bind 127.0.0.1:{port}")
    config = config.replace("/etc/haproxy/speech.pem", str(certificate))
    config = config.replace("127.0.0.1:8080", gateway.url.removeprefix("http://"))
    (tmp_path / "haproxy.cfg").write_text(config)
    with subprocess.Popen([haproxy_binary(), "-q", "-db", "-f", str(tmp_path / "haproxy.cfg")]) as process:
        try:
            with httpx.Client(
                base_url=f"https://localhost:{port}",
                verify=ssl.create_default_context(cafile=certificate),
                timeout=20,
            ) as client:
                wait_until(lambda: answers(client), "the proxy answers")
                yield client
        finally:
            process.terminate()


def certified(folder: Path) -> Path:
    """A certificate for localhost and its key in one file, as the proxy wants them."""
    command = (
        "openssl req -x509 -nodes -days 2 -newkey rsa:2048 -subj /CN=localhost -keyout key.pem -out cert.pem"
    )
    names = ["-addext", "subjectAltName=DNS:localhost"]
    subprocess.run([*command.split(), *names], cwd=folder, check=True, capture_output=True)
    both = folder / "speech.pem"
    both.write_text((folder / "cert.pem").read_text() + (folder / "key.pem").read_text())
    return both


def answers(client: httpx.Client) -> bool:
    try:
        return client.get("/health").status_code == 200
    except httpx.TransportError:
        return False


def test_audio_comes_through_it_while_it_is_being_spoken(
    proxy: httpx.Client, fake_triton: FakeTriton
) -> None:
    heard = threading.Event()

    def waits_for_the_listener(call: Call) -> Iterator[object]:
        yield chunk(0)
        assert heard.wait(20), "the first chunk never reached the listener"
        yield final(chunk(1, finish_reason="stop"))

    fake_triton.script = waits_for_the_listener  # type: ignore[assignment]
    with proxy.stream("POST", SPEECH, json=PCM) as response:
        pieces = response.iter_raw()
        audio = next(pieces)
        heard.set()
        audio += b"".join(pieces)
    assert len(audio) == 2 * 1920 * 2


async def test_a_conversation_goes_through_it(proxy: httpx.Client) -> None:
    # In asyncio: websockets' client with threads reads and writes one TLS connection in two threads at
    # once, which CPython's are not made for; one handshake in some 200 hung.
    url = str(proxy.base_url.join("/v1/audio/speech/stream")).replace("https", "wss")
    async with connect(url, ssl=proxy._transport._pool._ssl_context) as socket:  # type: ignore[attr-defined]
        await socket.send('{"type": "session.config", "voice": "ryan", "response_format": "pcm"}')
        await socket.send('{"type": "input.text", "text": "Hello."}')
        await socket.send('{"type": "input.done"}')
        kinds = [type(await asyncio.wait_for(socket.recv(), 20)) for _ in range(4)]
    assert kinds == [str, bytes, str, str]


def test_nobody_gets_an_answer_in_the_clear(proxy: httpx.Client) -> None:
    with pytest.raises(httpx.TransportError):
        httpx.post(f"http://localhost:{proxy.base_url.port}{SPEECH}", json=PCM)


def test_whoever_trusts_another_authority_is_told(proxy: httpx.Client) -> None:
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        httpx.get(str(proxy.base_url.join("/health")))
