"""The secrets that compose and Kubernetes mount: made once, and of one mind about Redis's password."""

import asyncio
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import redis
import yaml

from qwen3_tts_engine.launch.ports import free_ports
from qwen3_tts_engine.request import VoicePrompt
from qwen3_tts_engine.voices.store import Voice, open_store
from qwen3_tts_gateway.errors import RateLimited
from qwen3_tts_gateway.keys import Key
from qwen3_tts_gateway.limits import Limits
from qwen3_tts_gateway.settings import Settings
from real_server import ROOT
from redis_server import running_redis

PATIENCE_S = 10


@pytest.fixture(scope="module")
def make(script: Callable[[str], ModuleType]) -> Callable[[Path], list[Path]]:
    return script("make_secrets").make  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def secrets(make: Callable[[Path], list[Path]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("secrets")
    make(folder)
    return folder


def test_there_is_each_secret_that_somebody_mounts(secrets: Path, compose: dict[str, Any]) -> None:
    kustomization = yaml.safe_load((ROOT / "docker/secrets/kustomization.yaml").read_text())
    wanted = {*compose["secrets"], *kustomization["secretGenerator"][0]["files"]}
    assert {path.name for path in secrets.iterdir()} == wanted


def test_no_secret_is_like_another(secrets: Path) -> None:
    keys = [(secrets / name).read_text() for name in ("api_keys", "grafana_admin_password", "triton_api_key")]
    assert len({*keys}) == 3
    assert all(len(key) == 64 for key in keys)


def test_what_is_there_stays(make: Callable[[Path], list[Path]], tmp_path: Path) -> None:
    (tmp_path / "api_keys").write_text("mine")
    (tmp_path / "limits_store").write_text("redis://elsewhere")
    made = {path.name for path in make(tmp_path)}
    assert (tmp_path / "api_keys").read_text() == "mine"
    assert made == {"grafana_admin_password", "triton_api_key"}  # a new password would not be the old one's
    assert make(tmp_path) == []


def test_containers_can_read_them_and_other_users_of_the_machine_cannot(secrets: Path) -> None:
    assert stat.S_IMODE(secrets.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in secrets.iterdir()} == {0o644}


def test_git_does_not_see_them() -> None:
    ignored = (ROOT / "docker/secrets/.gitignore").read_text().splitlines()
    assert ignored == ["*", "!.gitignore", "!kustomization.yaml"]


@pytest.fixture(scope="module")
def port(secrets: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Where a Redis with these users listens."""
    port = free_ports()[0]
    users = str(secrets / "redis_users.acl")
    with running_redis(tmp_path_factory.mktemp("redis"), port, "--aclfile", users):
        yield port


def store(secrets: Path, name: str, port: int) -> str:
    return (secrets / name).read_text().replace("@redis:6379", f"@127.0.0.1:{port}")


def test_without_the_password_redis_says_that_it_is_alive_and_no_more(port: int) -> None:
    with redis.Redis(port=port) as anyone:
        assert anyone.ping()
        for ask in (anyone.keys, anyone.info, lambda: anyone.hgetall("{qwen3_tts:voices}:entries")):
            with pytest.raises(redis.exceptions.NoPermissionError):
                ask()


def test_voices_are_kept_there(port: int, secrets: Path) -> None:
    voices = open_store(store(secrets, "voice_store", port))
    prompt = VoicePrompt(np.zeros(64, np.float32), None, "")
    voices.save(Voice("grandpa", prompt, "2025-03-04T05:06:07.890+00:00", "a checkpoint"))
    assert [voice.name for voice in voices.list()] == ["grandpa"]
    assert voices.get("grandpa").name == "grandpa"
    voices.delete("grandpa")
    assert voices.list() == []


async def test_limits_are_counted_there(port: int, secrets: Path) -> None:
    app = Key("app")
    limits = Limits(
        Settings(limits_store=store(secrets, "limits_store", port), requests_per_minute=2, max_streams=1)
    )
    async with limits.stream(app):
        await limits.admit(app, 5)
        await limits.admit(app, 5)
        with pytest.raises(RateLimited):  # and not "nobody is limited", as with a Redis that refuses
            await limits.admit(app, 5)
        with pytest.raises(RateLimited):
            await asyncio.wait_for(limits.stream(app).__aenter__(), PATIENCE_S)
    await limits.close()
