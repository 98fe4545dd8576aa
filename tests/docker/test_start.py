"""What the containers run first: secrets become variables, and Triton gets the key it is locked with."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from qwen3_tts_engine.launch.access import Access
from qwen3_tts_engine.launch.config import config_from, parsed

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
    given = {"API_KEYS": "from the environment", "LIMITS_STORE": "", "OTEL_EXPORTER_OTLP_ENDPOINT": ""}
    assert start.environment_with(tmp_path, given) == {
        "API_KEYS": "from the environment",
        "LIMITS_STORE": "from the file",
    }


def test_where_there_are_no_secrets_the_environment_stays_as_it_is(start: ModuleType, tmp_path: Path) -> None:
    assert start.environment_with(tmp_path / "nowhere", {"PORT": "8080"}) == {"PORT": "8080"}


def test_options_for_the_launcher_and_flags_for_tritonserver_reach_them(start: ModuleType) -> None:
    command = start.triton(["--server-dir", "/opt/server", "--", "--log-verbose=1"])
    config = config_from({"TRITON_API_KEY": KEY}, parsed(command[3:]))
    assert (str(config.log_path), str(config.server_dir)) == ("/dev/stdout", "/opt/server")
    assert config.extra_args == ("--log-verbose=1",)


def test_the_launcher_locks_triton_with_the_secret(
    start: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "triton_api_key").write_text(f"{KEY}\n")
    monkeypatch.setattr(start, "SECRETS", tmp_path)
    monkeypatch.delenv("TRITON_API_KEY", raising=False)
    ran: list[tuple[str, list[str], dict[str, str]]] = []
    monkeypatch.setattr(start.os, "execvpe", lambda *call: ran.append(call))
    start.main(["triton"])
    [(_, command, environment)] = ran
    assert KEY not in " ".join(command)
    assert config_from(environment, parsed(command[3:])).access == Access(KEY)


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
