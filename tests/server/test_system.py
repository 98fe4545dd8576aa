"""Triton and the gateway as one system: they start together, serve together and end in order."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from qwen3_tts_engine.launch.config import LaunchConfig
from qwen3_tts_engine.launch.ports import free_ports
from qwen3_tts_engine.launch.repairs import Repairs
from qwen3_tts_engine.launch.system import running_gateway
from real_server import ROOT, Footprint, System, wait_until

pytestmark = pytest.mark.triton

Repository = Callable[..., Path]

SPEECH = "/v1/audio/speech"
PATIENCE_S = 60
# Hot enough to go on until it is stopped, after 10 s: see `callers.RESTLESS`.
TEN_SECONDS = {
    "input": "Hello.",
    "voice": "vivian",
    "response_format": "pcm",
    "max_new_tokens": 126,
    "temperature": 50.0,
    "top_k": 0,
    "repetition_penalty": 1e-6,
}
TEN_SECONDS_BYTES = 125 * 1920 * 2


def test_it_speaks_and_a_signal_lets_the_stream_in_flight_end(tiny_checkpoints: Path, tmp_path: Path) -> None:
    loading = {"PRELOAD_MODELS": "false", "VOICE_STORE": str(tmp_path / "voices")}
    with System(ROOT / "model_repository", tmp_path, **loading) as system:
        with httpx.stream("POST", f"{system.url}{SPEECH}", json=TEN_SECONDS, timeout=PATIENCE_S) as response:
            assert response.status_code == 200
            pieces = response.iter_raw()
            heard = next(pieces)
            system.terminate()
            heard += b"".join(pieces)
        assert len(heard) == TEN_SECONDS_BYTES
        assert system.process.wait(PATIENCE_S) == 0
        # Answered after the signal, or it was no stream in flight.
        assert [line["status"] for line in answers(system.rest())] == [200]
        system.assert_gone()


def test_a_second_signal_stops_both_at_once(toy_repository: Repository, tmp_path: Path) -> None:
    with System(toy_repository("echo"), tmp_path) as system:
        with closing(socket.create_connection(("127.0.0.1", system.port))) as caller:
            caller.sendall(f"POST {SPEECH} HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n".encode())
            wait_until(lambda: is_answering(system), "the gateway waits for the rest of the request")
            system.terminate()
            system.process.send_signal(signal.SIGINT)
            assert system.process.wait(PATIENCE_S) == 130
        system.assert_gone()


def test_a_gateway_that_dies_is_started_again(toy_repository: Repository, tmp_path: Path) -> None:
    with System(toy_repository("echo"), tmp_path) as system:
        system.gateway.kill()
        said = system.read_until("starting it again")
        assert "the gateway ended by itself with status -9" in said
        wait_until(system.is_healthy, "the gateway answers again", timeout_s=PATIENCE_S)
        system.gateway = system.child("qwen3_tts_gateway")
        system.terminate()
        assert system.process.wait(PATIENCE_S) == 0
        system.assert_gone()


def test_a_gateway_is_being_brought_back_until_it_answers() -> None:
    config, url = gateway_alone()
    repairs = Repairs()
    with running_gateway(config, repairs) as gateway:
        gateway.process.kill()
        gateway.process.wait()
        gateway.look()
        assert repairs.under_way() == ["gateway"]  # started, and not yet there

        def is_brought_back() -> bool:
            gateway.look()
            return not repairs.under_way()

        wait_until(is_brought_back, "the repair ends", timeout_s=PATIENCE_S)
        assert httpx.get(f"{url}/health").status_code == 200


def test_the_gateway_listens_where_the_launcher_looks_for_it_and_not_where_its_dotenv_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".env").write_text("HOST=127.0.0.2\n")
    monkeypatch.chdir(tmp_path)
    config, url = gateway_alone()  # as with `HOST= make serve`
    with running_gateway(config, Repairs()):
        assert httpx.get(f"{url}/health").status_code == 200


def test_callers_keys_reach_the_gateway_and_no_model(toy_repository: Repository, tmp_path: Path) -> None:
    with System(toy_repository("echo"), tmp_path, API_KEYS="key-of-a-caller") as system:
        assert httpx.post(f"{system.url}{SPEECH}", json={"input": "Hello."}).status_code == 401
        for variable, seen in {"$TRITON_HTTP_PORT": str(system.config.http_port), "$API_KEYS": ""}.items():
            asked = {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": [variable]}]}
            model = f"http://127.0.0.1:{system.config.http_port}/v2/models/echo/infer"
            assert httpx.post(model, json=asked).json()["outputs"][0]["data"] == [seen]


def test_a_tritonserver_that_dies_is_started_again_and_the_gateway_finds_it(
    toy_repository: Repository, tmp_path: Path
) -> None:
    with System(toy_repository("echo"), tmp_path) as system:
        for stub in system.footprint.stubs():
            stub.suspend()  # it cannot notice by itself that its server is gone
        psutil.Process(system.footprint.group).kill()
        system.read_until("tritonserver serves again")
        system.footprint.assert_gone()
        wait_until(system.finds_triton, "the gateway finds Triton again", timeout_s=PATIENCE_S)
        system.footprint = Footprint(system.child("tritonserver").pid)
        system.terminate()
        assert system.process.wait(PATIENCE_S) == 0
        system.assert_gone()


def test_a_gateway_that_cannot_start_ends_the_system_with_its_own_words(
    toy_repository: Repository, tmp_path: Path
) -> None:
    flags = ("--model-repository", str(toy_repository("echo")), "--log-path", str(tmp_path / "log"))
    run = run_in_vain(*flags, **four_ports(), LOG_LEVEL="loud")
    assert run.returncode == 1
    assert "LOG_LEVEL: 'loud' is none of" in run.stderr
    assert run.stderr.endswith("error: the gateway could not start; it ended with status 1\n")


@pytest.mark.parametrize("service", ["HTTP", "GRPC", "METRICS"])
def test_a_port_that_is_tritons_is_refused_by_name(service: str) -> None:
    [port] = free_ports(1)
    run = run_in_vain(PORT=str(port), **{f"TRITON_{service}_PORT": str(port)})
    assert run.returncode == 1
    assert run.stderr == (
        f"error: TRITON_{service}_PORT and PORT are both {port}; each needs a port of its own\n"
    )


@pytest.mark.parametrize("value", ["http", "0", "70000"])
def test_a_port_that_is_none_is_refused_by_name(value: str) -> None:
    run = run_in_vain(PORT=value)
    assert run.returncode == 1
    assert run.stderr == f"error: PORT={value}: not a port number, 1 to 65535\n"


def test_a_port_in_use_is_refused_by_name_before_triton_is_started() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        run = run_in_vain(**four_ports() | {"PORT": str(port)})
    assert run.returncode == 1
    assert run.stderr.startswith(f"error: PORT={port}: cannot listen on 127.0.0.1: ")


def gateway_alone() -> tuple[LaunchConfig, str]:
    """The configuration of one without Triton, on a free port, and its URL."""
    [port] = free_ports(1)
    environment = {name: value for name, value in os.environ.items() if name != "HOST"}
    return LaunchConfig(environment={**environment, "PORT": str(port)}), f"http://127.0.0.1:{port}"


def four_ports() -> dict[str, str]:
    names = ("PORT", "TRITON_HTTP_PORT", "TRITON_GRPC_PORT", "TRITON_METRICS_PORT", "SUPERVISOR_PORT")
    return {name: str(port) for name, port in zip(names, free_ports(len(names)), strict=True)}


def run_in_vain(*flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "qwen3_tts_engine.launch.system", *flags],
        env={**os.environ, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )


def answers(said: str) -> list[dict[str, Any]]:
    """The gateway's lines about requests that were answered."""
    lines = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    return [line for line in lines if line["message"] == "answered"]


def is_answering(system: System) -> bool:
    page = httpx.get(f"{system.url}/metrics").text
    return "qwen3_tts_gateway_requests_in_flight 2.0" in page  # this one, and the other
