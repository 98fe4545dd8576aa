"""The gateway as a process: how it starts, what it refuses to start with, and how it ends."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from fakes.triton_server import Call, FakeTriton, Response, chunk, final
from gateway_server import GatewayProcess
from qwen3_tts_gateway.cli import main
from qwen3_tts_gateway.serving import listener
from qwen3_tts_gateway.settings import Settings
from real_server import wait_until

SPEECH = "/v1/audio/speech"
RYAN = {"input": "Hello.", "voice": "ryan", "response_format": "pcm"}
CHUNK_BYTES = 1920 * 2
MOST_S = 20

SIGNALS = pytest.mark.parametrize("name", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])


@pytest.fixture
def gateway(fake_triton: FakeTriton, tmp_path: Path) -> Iterator[GatewayProcess]:
    with GatewayProcess(tmp_path, TRITON_GRPC_PORT=str(fake_triton.port)) as process:
        process.wait_until_ready()
        yield process


def test_a_second_ctrl_c_waits_for_no_balancer(fake_triton: FakeTriton, tmp_path: Path) -> None:
    notice = {"TRITON_GRPC_PORT": str(fake_triton.port), "SHUTDOWN_NOTICE_S": "60"}
    with GatewayProcess(tmp_path, **notice) as gateway:
        gateway.wait_until_ready()
        gateway.process.send_signal(signal.SIGINT)
        wait_until(lambda: not gateway.is_ready(), "readiness says no")
        gateway.process.send_signal(signal.SIGINT)
        gateway.process.wait(MOST_S)


@SIGNALS
def test_a_signal_lets_the_stream_in_flight_end_and_nobody_else_in(
    gateway: GatewayProcess, fake_triton: FakeTriton, name: signal.Signals
) -> None:
    go_on = threading.Event()

    def pauses(call: Call) -> Iterator[Response]:
        yield chunk(0)
        go_on.wait(MOST_S)
        yield chunk(1)
        yield final(chunk(2, finish_reason="stop"))

    fake_triton.script = pauses
    with httpx.stream("POST", f"{gateway.url}{SPEECH}", json=RYAN) as response:
        pieces = response.iter_raw()
        heard = next(pieces)
        gateway.process.send_signal(name)
        wait_until(lambda: not gateway.answers(), "new callers are refused")
        with pytest.raises(subprocess.TimeoutExpired):  # nothing but the stream holds it
            gateway.process.wait(1)
        go_on.set()
        heard += b"".join(pieces)
    assert len(heard) == 3 * CHUNK_BYTES
    assert gateway.process.wait(MOST_S) == 0
    assert "Traceback" not in gateway.said()


@SIGNALS
def test_who_is_connected_and_asks_for_nothing_does_not_hold_the_end(
    gateway: GatewayProcess, name: signal.Signals
) -> None:
    with (
        closing(http.client.HTTPConnection("127.0.0.1", gateway.port)) as idle,
        connect(f"ws://127.0.0.1:{gateway.port}{SPEECH}/stream"),
        closing(socket.create_connection(("127.0.0.1", gateway.port))),
    ):
        idle.request("GET", "/health")
        assert idle.getresponse().status == 200
        gateway.process.send_signal(name)
        assert gateway.process.wait(MOST_S) == 0
    assert "Traceback" not in gateway.said()


def test_who_sends_half_a_body_and_no_key_does_not_hold_the_end(
    fake_triton: FakeTriton, tmp_path: Path
) -> None:
    environment = {"TRITON_GRPC_PORT": str(fake_triton.port), "API_KEYS": "secret"}
    with GatewayProcess(tmp_path, **environment) as gateway:
        gateway.wait_until_ready()
        with closing(http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=MOST_S)) as caller:
            caller.putrequest("POST", SPEECH)
            caller.putheader("Content-Type", "application/json")
            caller.putheader("Content-Length", "1000")
            caller.endheaders(b"{")
            assert caller.getresponse().status == 401
            gateway.process.terminate()
            assert gateway.process.wait(MOST_S) == 0


def test_a_gateway_that_is_told_to_stop_says_so_to_balancers_while_it_still_serves(
    fake_triton: FakeTriton, tmp_path: Path
) -> None:
    """Nobody's request can fall between a balancer's last look and the closing of the port."""
    notice = {"TRITON_GRPC_PORT": str(fake_triton.port), "SHUTDOWN_NOTICE_S": "3"}
    with GatewayProcess(tmp_path, **notice) as gateway, httpx.Client(base_url=gateway.url) as kept:
        gateway.wait_until_ready()
        assert kept.get("/health/ready").json() == {"status": "ready"}
        gateway.process.terminate()
        wait_until(lambda: not gateway.is_ready(), "readiness says no")
        answer = kept.post(SPEECH, json=RYAN)
        assert (answer.status_code, answer.headers["Connection"]) == (200, "close")
        assert kept.get("/health").status_code == 200
        assert gateway.process.wait(MOST_S) == 0


@SIGNALS
def test_a_signal_lets_the_conversation_end_its_utterance_and_begin_no_other(
    gateway: GatewayProcess, fake_triton: FakeTriton, name: signal.Signals
) -> None:
    go_on = threading.Event()

    def pauses(call: Call) -> Iterator[Response]:
        yield chunk(0)
        go_on.wait(MOST_S)
        yield final(chunk(1, finish_reason="stop"))

    fake_triton.script = pauses
    with connect(f"{gateway.url.replace('http', 'ws')}{SPEECH}/stream") as socket:
        told = {"type": "session.config", "voice": "ryan", "response_format": "pcm", "stream_audio": True}
        say = ({"type": "input.text", "text": "Hello."}, {"type": "input.done"})
        for message in (told, *say):
            socket.send(json.dumps(message))
        heard = [socket.recv(MOST_S), socket.recv(MOST_S)]
        gateway.process.send_signal(name)
        wait_until(lambda: not gateway.answers(), "new callers are refused")
        for message in say:
            socket.send(json.dumps(message))
        refusal = json.loads(socket.recv(MOST_S))
        go_on.set()
        with pytest.raises(ConnectionClosed) as closed:
            hear(socket, heard)
    assert refusal["code"] == "shutting_down"
    assert len(b"".join(piece for piece in heard if isinstance(piece, bytes))) == 2 * CHUNK_BYTES
    assert json.loads(heard[-1])["type"] == "session.done"
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1012
    assert gateway.process.wait(MOST_S) == 0
    assert "Traceback" not in gateway.said()


def test_a_gateway_starts_without_triton_and_says_where_it_listens(tmp_path: Path) -> None:
    with GatewayProcess(tmp_path) as gateway:
        gateway.wait_until_ready()
        assert httpx.get(f"{gateway.url}/health").status_code == 200
        lines = [json.loads(line) for line in gateway.said().splitlines()]
    [listening] = [line for line in lines if line["message"] == "listening"]
    assert (listening["host"], listening["port"]) == ("127.0.0.1", gateway.port)


@pytest.mark.parametrize("path", ["/", "/health", "/health/ready"])
def test_whoever_asks_for_headers_alone_gets_them(http: httpx.Client, path: str) -> None:
    response = http.head(path)
    assert (response.status_code, response.content) == (200, b"")


def test_a_port_in_use_is_refused_by_name(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, said = serve_in_vain(tmp_path, PORT=str(port))
    assert code == 1
    assert said.startswith(f"qwen3-tts-gateway: PORT={port}: cannot listen on 127.0.0.1: ")
    assert "in use" in said


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("API_KEYS", "k\N{LATIN SMALL LETTER E WITH ACUTE}y"),
        ("API_KEYS_FILE", "nowhere.json"),
        ("LIMITS_STORE", "carrier-pigeon://loft"),
    ],
)
def test_what_cannot_be_had_is_refused_by_name(name: str, value: str, tmp_path: Path) -> None:
    code, said = serve_in_vain(tmp_path, **{name: value})
    assert code == 1
    assert name in said or value in said
    assert "Traceback" not in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("PORT", "http", "valid integer"),
        ("PORT", "70000", "less than or equal to 65535"),
        ("LOG_LEVEL", "loud", "'loud' is none of DEBUG, INFO, WARNING, ERROR"),
        ("CHUNK_TIMEOUT_S", "0", "greater than 0"),
        ("PRELOAD_MODELS", "perhaps", "valid boolean"),
        ("MAX_CHARACTERS", "-1", "greater than 0"),
        ("TRITON_CA_FILE", "nowhere.pem", "does not point to a file"),
        ("OPENAI_VOICES", "{alloy: ryan}", "no JSON"),
        ("OPENAI_VOICES", "[1]", "valid dictionary"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused_by_name_in_words(
    name: str,
    value: str,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for field in Settings.model_fields:
        monkeypatch.delenv(field.upper(), raising=False)
    monkeypatch.setenv(name, value)
    assert main(["serve"]) == 1
    out, said = capsys.readouterr()
    assert out == ""
    assert said.startswith(f"qwen3-tts-gateway: {name}: ")
    assert words in said
    assert len(said.splitlines()) == 1


def hear(socket: ClientConnection, heard: list[str | bytes]) -> None:
    while True:
        heard.append(socket.recv(MOST_S))


def serve_in_vain(directory: Path, **environment: str) -> tuple[int, str]:
    with GatewayProcess(directory, **environment) as gateway:
        return gateway.process.wait(MOST_S), gateway.said()


def test_no_answer_waits_for_the_caller_to_acknowledge_its_headers() -> None:
    with listener("127.0.0.1", 0) as listening, socket.create_connection(listening.getsockname()):
        connection, _ = listening.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_the_kernel_lets_go_of_a_caller_who_takes_nothing_any_more() -> None:
    with listener("127.0.0.1", 0) as listening, socket.create_connection(listening.getsockname()):
        connection, _ = listening.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 120_000
