"""The launcher against the real tritonserver, with toy models in place of the talkers."""

import http.client
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from tritonclient import grpc as triton

from qwen3_tts_engine.launch.command import server_environment
from qwen3_tts_engine.launch.config import (
    SUPERVISOR_PORT,
    LaunchConfig,
    config_from,
    environment_with,
    parsed,
)
from qwen3_tts_engine.launch.server import MOST_LOG_BYTES, Server, running_server
from qwen3_tts_engine.launch.tritonserver import Installation, LaunchError
from real_server import ROOT, Footprint, Launcher, on_free_ports, wait_until

pytestmark = pytest.mark.triton

Repository = Callable[..., Path]
StartServer = Callable[..., Server]

KEY = "key-of-the-test"
WAIT_S = 20  # of a caller whose model's process died: docs/reliability.md


def test_a_server_serves_inside_its_block_and_leaves_nothing_behind(toy_repository: Repository) -> None:
    with running_server(on_free_ports(model_repository=toy_repository("echo"))) as server:
        footprint = Footprint(server.process.pid)
        assert echo(server, "hello") == "hello"
        assert footprint.stubs()
        assert footprint.regions()
    footprint.assert_gone()


def test_model_processes_use_this_interpreter_and_the_given_environment(
    start_server: StartServer, toy_repository: Repository
) -> None:
    server = start_server(
        model_repository=toy_repository("echo"), environment={"VOICE_STORE": "file:///voices"}
    )
    assert echo(server, "$VOICE_STORE") == "file:///voices"
    assert echo(server, "$OMP_NUM_THREADS") == "1"
    assert echo(server, "$OMP_WAIT_POLICY") == "passive"
    assert echo(server, "$PATH").startswith(str(Path(sys.executable).parent))


@pytest.mark.parametrize(
    ("variable", "given", "seen"),
    [
        ("VOICE_STORE", "voices", "{here}/voices"),
        ("VOICE_STORE", "redis://localhost/0", "redis://localhost/0"),
        ("QWEN_TTS_BASE_MODEL", "checkpoints/base", "{here}/checkpoints/base"),
        ("QWEN_TTS_TOKENIZER", "./tokenizer", "{here}/tokenizer"),
        ("QWEN_TTS_CUSTOM_VOICE_MODEL", "Qwen/Qwen3-TTS", "Qwen/Qwen3-TTS"),
        ("MODEL_CACHE_DIR", "cache", "{here}/cache"),
    ],
)
def test_a_relative_path_starts_where_the_launcher_was_started(
    variable: str, given: str, seen: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "checkpoints/base").mkdir(parents=True)
    (tmp_path / "tokenizer").mkdir()
    monkeypatch.chdir(tmp_path)
    environment = server_environment({variable: given}, Installation(Path("tritonserver")))
    assert environment[variable] == seen.format(here=tmp_path)


@pytest.mark.parametrize("name", ["TRITON_API_KEY", "API_KEYS", "api_keys", "LIMITS_STORE"])
def test_model_processes_do_not_see_what_others_are_to_keep_secret(name: str) -> None:
    environment = server_environment({name: "secret"}, Installation(Path("tritonserver")))
    assert "secret" not in environment.values()


def test_models_are_cached_where_the_original_server_was_told_to(tmp_path: Path) -> None:
    installation = Installation(Path("tritonserver"))
    moved = server_environment({"MODEL_CACHE_DIR": str(tmp_path)}, installation)
    assert moved["HF_HOME"] == str(tmp_path)
    named = server_environment({"MODEL_CACHE_DIR": str(tmp_path), "HF_HOME": "/hub"}, installation)
    assert named["HF_HOME"] == "/hub"


def configured(environment: dict[str, str], tmp_path: Path) -> LaunchConfig:
    return config_from(environment, parsed(["--server-dir", str(tmp_path)]))


def test_the_supervisors_port_is_another_where_the_usual_one_is_taken(tmp_path: Path) -> None:
    with ExitStack() as somebody:
        with suppress(OSError):  # or it is taken already
            somebody.enter_context(socket.create_server(("127.0.0.1", SUPERVISOR_PORT)))
        assert configured({}, tmp_path).supervisor_port != SUPERVISOR_PORT
    assert configured({"PORT": str(SUPERVISOR_PORT)}, tmp_path).supervisor_port != SUPERVISOR_PORT
    asked = {"SUPERVISOR_PORT": "9003"}
    assert configured(asked, tmp_path).supervisor_port == 9003


def test_a_dotenv_is_read_below_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("API_KEYS=from-the-file\nLOG_LEVEL=DEBUG\nVOICE_STORE=\n")
    monkeypatch.setenv("LOG_LEVEL", "INFO")
    monkeypatch.setenv("REFERENCE_HOSTS", "")
    environment = environment_with(tmp_path / ".env")
    assert (environment["API_KEYS"], environment["LOG_LEVEL"]) == ("from-the-file", "INFO")
    assert not {"VOICE_STORE", "REFERENCE_HOSTS"} & environment.keys()


def test_a_body_in_a_million_chunks_does_not_end_the_server(
    start_server: StartServer, toy_repository: Repository
) -> None:
    server = start_server(model_repository=toy_repository("echo"))
    asked = json.dumps(echo_request("hello"))
    body = "1\r\n \r\n" * 1_000_000 + f"{len(asked):x}\r\n{asked}\r\n0\r\n\r\n"
    with closing(http.client.HTTPConnection("127.0.0.1", server.http_port)) as connection:
        connection.request("POST", "/v2/models/echo/infer", body, {"Transfer-Encoding": "chunked"})
        assert connection.getresponse().status == 200


def test_a_model_that_cannot_load_shows_the_end_of_the_log(
    toy_repository: Repository, tmp_path: Path
) -> None:
    config = on_free_ports(model_repository=toy_repository("echo", "failing"), log_path=tmp_path / "log")
    with pytest.raises(LaunchError, match="no plankton left") as raised, running_server(config):
        pass
    assert str(tmp_path / "log") in str(raised.value)


def test_a_failure_shows_nothing_of_an_earlier_run(tmp_path: Path) -> None:
    config = on_free_ports(log_path=tmp_path / "log")
    config.log_path.write_text("earlier\n")
    server = Server.start(config, Installation(Path("/bin/echo")))
    with pytest.raises(LaunchError, match=r"(?s)could not start.*--model-control-mode") as raised:
        server.wait_until_ready()
    assert "earlier" not in str(raised.value)


def test_a_missing_model_repository_is_refused_by_name(tmp_path: Path) -> None:
    config = on_free_ports(model_repository=tmp_path / "nowhere")
    with pytest.raises(LaunchError, match="nowhere"), running_server(config):
        pass


@pytest.mark.parametrize("service", ["http", "grpc", "metrics"])
def test_a_port_in_use_is_refused_by_name(service: str, toy_repository: Repository) -> None:
    config = on_free_ports(model_repository=toy_repository("echo"))
    port = getattr(config, f"{service}_port")
    expected = rf"TRITON_{service.upper()}_PORT={port}: .*in use"
    with (
        socket.create_server((config.host, port)),
        pytest.raises(LaunchError, match=expected),
        running_server(config),
    ):
        pass


def test_a_port_given_twice_is_refused_by_name(toy_repository: Repository) -> None:
    config = on_free_ports(model_repository=toy_repository("echo"), http_port=8765, metrics_port=8765)
    expected = "TRITON_HTTP_PORT and TRITON_METRICS_PORT are both 8765"
    with pytest.raises(LaunchError, match=expected), running_server(config):
        pass


def test_sigkill_of_a_model_process_leaves_nothing_behind(toy_repository: Repository) -> None:
    with running_server(on_free_ports(model_repository=toy_repository("echo"), exit_timeout_s=1)) as server:
        footprint = Footprint(server.process.pid)
        for stub in footprint.stubs():
            stub.kill()
        wait_until(lambda: not footprint.stubs(), "the model processes end")
    footprint.assert_gone()


def test_sigterm_drains_the_stream_in_flight(toy_repository: Repository, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with Launcher(toy_repository("counter"), tmp_path, "--idle-grace-s", "0") as launcher:
        with counting(launcher, gate) as responses:
            assert next(responses) == 0
            launcher.terminate()
            # Triton counts down once a second: by the third, a stream taken for idle would have been cut.
            wait_until(lambda: launcher.log().count('"Timeout ') >= 3, "the countdown of the drain")
            gate.touch()
            assert list(responses) == [1, 2, 3, 4]
        assert launcher.process.wait() == 0
        launcher.footprint.assert_gone()


def test_an_idle_connection_does_not_hold_the_drain(toy_repository: Repository, tmp_path: Path) -> None:
    with Launcher(toy_repository("counter"), tmp_path, "--idle-grace-s", "0") as launcher:
        with closing(http.client.HTTPConnection("127.0.0.1", launcher.config.http_port)) as connection:
            connection.request("GET", "/v2/health/live")
            assert connection.getresponse().read() == b""
            launcher.terminate()
            assert launcher.process.wait(timeout=10) == 0
        launcher.footprint.assert_gone()


def test_a_second_signal_stops_at_once(toy_repository: Repository, tmp_path: Path) -> None:
    with Launcher(toy_repository("counter"), tmp_path) as launcher:
        with counting(launcher, tmp_path / "a gate that stays closed") as responses:
            assert next(responses) == 0
            launcher.terminate()
            launcher.process.send_signal(signal.SIGINT)
            assert launcher.process.wait(timeout=10) == 130
        launcher.footprint.assert_gone()


def test_two_signals_that_come_together_stop_at_once(toy_repository: Repository, tmp_path: Path) -> None:
    with Launcher(toy_repository("counter"), tmp_path) as launcher:
        with counting(launcher, tmp_path / "a gate that stays closed") as responses:
            assert next(responses) == 0
            launcher.process.send_signal(signal.SIGSTOP)  # so that it finds both when it goes on
            for name in (signal.SIGTERM, signal.SIGINT, signal.SIGCONT):
                launcher.process.send_signal(name)
            assert launcher.process.wait(timeout=10) == 130
        launcher.footprint.assert_gone()


def test_a_server_that_dies_is_started_again_on_its_ports(toy_repository: Repository, tmp_path: Path) -> None:
    with Launcher(toy_repository("echo"), tmp_path) as launcher:
        kill_server(launcher)
        said = launcher.read_until("tritonserver serves again")
        assert "tritonserver ended by itself with status -9" in said
        launcher.footprint.assert_gone()
        assert echo(launcher.config, "hello") == "hello"
        repairs = 'qwen3_tts_repairs_total{what="tritonserver",reason="died"} 1'
        assert repairs in supervisor_page(launcher, "/metrics").text
        assert supervisor_page(launcher, "/health").status_code == 200
        launcher.terminate()
        assert launcher.process.wait() == 0


def test_the_only_one_who_is_spoken_to_hears_of_a_process_that_died(
    toy_repository: Repository, tmp_path: Path
) -> None:
    with Launcher(toy_repository("counter"), tmp_path) as launcher:
        with counting(launcher, tmp_path / "never") as responses:
            assert next(responses) == 0
            [stub] = launcher.footprint.stubs()
            began_s = time.monotonic()
            stub.kill()
            with pytest.raises(triton.InferenceServerException):
                next(responses)
            assert time.monotonic() - began_s < WAIT_S
        assert "counter: died" in launcher.read_until("tritonserver serves again")


def test_a_server_that_cannot_start_again_is_given_up_with_the_end_of_its_log(
    toy_repository: Repository, tmp_path: Path
) -> None:
    repository = toy_repository("echo")
    with Launcher(repository, tmp_path) as launcher:
        toy_repository("failing")
        kill_server(launcher)
        said = launcher.read_until("no plankton left")
        assert "tritonserver could not be started 3 times in a row" in said
        assert launcher.process.wait() == 1
        launcher.footprint.assert_gone()


def test_a_signal_ends_a_server_that_is_being_started_again(
    toy_repository: Repository, tmp_path: Path
) -> None:
    repository = toy_repository("echo")
    with Launcher(repository, tmp_path) as launcher:
        (repository / "echo" / "1" / "model.py").write_text("import time; time.sleep(1000)")
        kill_server(launcher)
        launcher.read_until("bringing tritonserver back")
        assert supervisor_page(launcher, "/health").status_code == 503
        assert supervisor_page(launcher, "/live").status_code == 200
        launcher.process.terminate()
        assert launcher.process.wait(timeout=10) == 0
        launcher.footprint.assert_gone()


def test_a_log_that_grows_too_long_makes_room(toy_repository: Repository, tmp_path: Path) -> None:
    with Launcher(toy_repository("echo"), tmp_path, "--", "--log-verbose=1") as launcher:
        log = launcher.config.log_path
        with log.open("ab") as file:
            file.truncate(MOST_LOG_BYTES + 1)  # a hole, which costs no disk
        wait_until(lambda: log.stat().st_size < MOST_LOG_BYTES, "the log is emptied")
        assert "Started HTTPService" in log.with_name(f"{log.name}.1").read_text(errors="replace")
        assert echo(launcher.config, "the server goes on") == "the server goes on"
        wait_until(lambda: "/v2/models/echo/infer" in log.read_text(), "it goes on writing")
        assert log.stat().st_size < MOST_LOG_BYTES


def test_without_preloading_a_server_starts_empty_and_loads_on_request(
    toy_repository: Repository, tmp_path: Path
) -> None:
    environment = {"PRELOAD_MODELS": "false", "TRITON_API_KEY": KEY}
    with Launcher(toy_repository("echo", "failing"), tmp_path, **environment) as launcher:
        server = launcher.config
        assert {model.get("state") for model in post(server, "/v2/repository/index", {})} == {None}
        post(server, "/v2/repository/models/echo/load", {})
        assert echo(server, "hello") == "hello"


def test_what_was_loaded_on_request_is_loaded_again_after_a_restart(
    toy_repository: Repository, tmp_path: Path
) -> None:
    environment = {"PRELOAD_MODELS": "false", "TRITON_API_KEY": KEY}
    verbose = ("--", "--log-verbose=1")
    with Launcher(toy_repository("echo", "counter"), tmp_path, *verbose, **environment) as launcher:
        post(launcher.config, "/v2/repository/models/echo/load", {})
        wait_until(lambda: "/v2/models/echo/config" in launcher.log(), "the supervisor knows of it")
        kill_server(launcher)
        launcher.read_until("tritonserver serves again")
        assert echo(launcher.config, "hello") == "hello"
        index = post(launcher.config, "/v2/repository/index", {})
        assert {model["name"] for model in index if model.get("state") == "READY"} == {"echo"}


def test_a_model_that_loads_no_more_keeps_no_other_from_coming_back(
    toy_repository: Repository, tmp_path: Path
) -> None:
    repository = toy_repository("counter", "echo")
    environment = {"PRELOAD_MODELS": "false", "TRITON_API_KEY": KEY}
    with Launcher(repository, tmp_path, "--", "--log-verbose=1", **environment) as launcher:
        for model in ("counter", "echo"):
            post(launcher.config, f"/v2/repository/models/{model}/load", {})
        asked = [f"/v2/models/{model}/config" for model in ("counter", "echo")]
        wait_until(lambda: all(path in launcher.log() for path in asked), "the supervisor knows of both")
        (repository / "counter" / "1" / "model.py").write_text("raise SystemError('no plankton left')")
        kill_server(launcher)
        assert "counter could not be loaded again" in launcher.read_until("tritonserver serves again")
        assert echo(launcher.config, "hello") == "hello"


def test_an_ensemble_that_comes_later_does_not_load_its_parts_again(
    start_server: StartServer, toy_repository: Repository
) -> None:
    server = start_server(model_repository=toy_repository("echo", "relay"), preload_models=False)
    for model in ("echo", "relay"):
        post(server, f"/v2/repository/models/{model}/load", {})
    assert server.log_path.read_text().count('"loading: echo:1"') == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [("TRITON_HTTP_PORT", "http"), ("TRITON_GRPC_PORT", "70000"), ("PRELOAD_MODELS", "maybe")],
)
def test_a_value_out_of_range_is_refused_by_name(name: str, value: str) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "qwen3_tts_engine.launch.launcher"],
        env={**os.environ, name: value},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1
    assert f"error: {name}={value}: " in run.stderr


def kill_server(launcher: Launcher) -> None:
    for stub in launcher.footprint.stubs():
        stub.suspend()  # it cannot notice by itself that its server is gone
    psutil.Process(launcher.footprint.group).kill()


def supervisor_page(launcher: Launcher, path: str) -> httpx.Response:
    return httpx.get(f"http://127.0.0.1:{launcher.supervisor_port}{path}")


def post(server: Any, path: str, body: Any) -> Any:
    with closing(http.client.HTTPConnection("127.0.0.1", server.http_port)) as connection:
        connection.request("POST", path, json.dumps(body), {"Authorization": f"Bearer {KEY}"})
        response = connection.getresponse()
        answer = response.read()
        assert response.status == 200, answer
        return json.loads(answer or "null")


def echo(server: Any, text: str) -> str:
    return post(server, "/v2/models/echo/infer", echo_request(text))["outputs"][0]["data"][0]


def echo_request(text: str) -> Any:
    return {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": [text]}]}


@contextmanager
def counting(launcher: Launcher, gate: Path) -> Iterator[Iterator[int]]:
    """The numbers the toy model streams, as they arrive."""
    arrivals: queue.Queue[Any] = queue.Queue()
    tensor = triton.InferInput("gate", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([str(gate).encode()], object))
    with closing(triton.InferenceServerClient(f"127.0.0.1:{launcher.config.grpc_port}")) as client:
        client.start_stream(lambda result, error: arrivals.put(error or result))
        client.async_stream_infer("counter", [tensor], enable_empty_final_response=True)
        yield numbers(arrivals)
        client.stop_stream(cancel_requests=True)


def numbers(arrivals: "queue.Queue[Any]") -> Iterator[int]:
    while not (result := arrival(arrivals)).get_response().parameters["triton_final_response"].bool_param:
        yield int(result.as_numpy("number")[0])


def arrival(arrivals: "queue.Queue[Any]") -> Any:
    if isinstance(result := arrivals.get(timeout=20), Exception):
        raise result
    return result
