"""What the containers run first: secrets become variables, and Triton's restricted APIs get their key."""

import http.client
import json
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import ModuleType

import pytest
from tritonclient import grpc as triton
from tritonclient.utils import InferenceServerException

from qwen3_tts_client import SpeechClient
from qwen3_tts_engine.launcher import Server, running_server
from real_server import on_free_ports

KEY = "0123456789abcdef"


@pytest.fixture(scope="module")
def start(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("start")


def test_a_secret_is_the_variable_of_its_name(start: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "triton_api_key").write_text(f"{KEY}\n")
    (tmp_path / "..data").mkdir()  # as Kubernetes lays secrets out
    assert start.environment_with(tmp_path, {"PATH": "/bin"}) == {"PATH": "/bin", "TRITON_API_KEY": KEY}


def test_the_environment_wins_where_it_says_something(start: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "api_keys").write_text("from the file")
    (tmp_path / "limits_store").write_text("from the file")
    given = {"API_KEYS": "from the environment", "LIMITS_STORE": "", "OTLP_ENDPOINT": ""}
    assert start.environment_with(tmp_path, given) == {
        "API_KEYS": "from the environment",
        "LIMITS_STORE": "from the file",
    }


def test_where_there_are_no_secrets_the_environment_stays_as_it_is(start: ModuleType, tmp_path: Path) -> None:
    assert start.environment_with(tmp_path / "nowhere", {"PORT": "8080"}) == {"PORT": "8080"}


def test_options_for_the_launcher_and_flags_for_tritonserver_stay_apart(start: ModuleType) -> None:
    command = start.triton(["--server-dir", "/opt/server", "--", "--log-verbose=1"], KEY)
    end = command.index("--")
    assert command[3:end] == ["--log-path", "/dev/stdout", "--server-dir", "/opt/server"]
    assert command[end + 1] == "--log-verbose=1"
    assert [flag.split("=")[0] for flag in command[end + 2 :]] == [
        "--grpc-restricted-protocol",
        "--http-restricted-api",
    ]


def test_triton_does_not_start_without_a_key(
    start: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(start, "SECRETS", tmp_path)
    monkeypatch.delenv("TRITON_API_KEY", raising=False)
    monkeypatch.setattr(start.os, "execvpe", lambda *_: pytest.fail("it started"))
    with pytest.raises(SystemExit, match="no TRITON_API_KEY"):
        start.main(["triton"])


def test_any_other_command_runs_with_the_secrets(
    start: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "api_keys").write_text(KEY)
    monkeypatch.setattr(start, "SECRETS", tmp_path)
    monkeypatch.delenv("API_KEYS", raising=False)
    ran: list[tuple[str, list[str], dict[str, str]]] = []
    monkeypatch.setattr(start.os, "execvpe", lambda *call: ran.append(call))
    start.main(["qwen3-tts-gateway", "serve"])
    [(program, command, environment)] = ran
    assert (program, command) == ("qwen3-tts-gateway", ["qwen3-tts-gateway", "serve"])
    assert environment["API_KEYS"] == KEY


@pytest.fixture(scope="module")
def locked(start: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A tritonserver without models, started with the flags of the image."""
    directory = tmp_path_factory.mktemp("locked")
    (directory / "models").mkdir()
    flags = start.triton([], KEY)
    config = on_free_ports(
        model_repository=directory / "models",
        log_path=directory / "tritonserver.log",
        preload_models=False,
        extra_args=tuple(flags[flags.index("--") + 1 :]),
    )
    with running_server(config) as server:
        yield server


def status(server: Server, path: str, key: str | None = None, method: str = "GET") -> int:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    with closing(http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=10)) as connection:
        connection.request(method, path, body=json.dumps({}) if method == "POST" else None, headers=headers)
        return connection.getresponse().status


@pytest.mark.triton
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v2/repository/index"),
        ("GET", "/v2/systemsharedmemory/status"),
        ("GET", "/v2/cudasharedmemory/status"),
        ("GET", "/v2/logging"),
        ("GET", "/v2/trace/setting"),
    ],
)
def test_over_http_the_restricted_apis_want_the_key(locked: Server, method: str, path: str) -> None:
    assert status(locked, path, method=method) == 403
    assert status(locked, path, "another", method) == 403
    assert status(locked, path, KEY, method) in (200, 400)  # cuda's answers 400 where there is no GPU


@pytest.mark.triton
def test_over_grpc_they_do_as_well(locked: Server) -> None:
    url = f"localhost:{locked.grpc_port}"
    asks = (
        "get_model_repository_index",
        "get_system_shared_memory_status",
        "get_log_settings",
        "get_trace_settings",
    )
    with triton.InferenceServerClient(url) as client:
        for ask in asks:
            with pytest.raises(InferenceServerException, match="restricted"):
                getattr(client, ask)()
            getattr(client, ask)(headers={"triton-grpc-protocol-authorization": f"Bearer {KEY}"})


@pytest.mark.triton
def test_our_client_has_the_key_and_everybody_may_ask_for_health(locked: Server) -> None:
    with SpeechClient(f"localhost:{locked.grpc_port}", api_key=KEY) as tts:
        assert tts.models.list() == []
    assert status(locked, "/v2/health/ready") == 200
