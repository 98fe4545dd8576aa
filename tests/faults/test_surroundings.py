"""What Triton and the gateway stand on breaks while callers are spoken to: the network, Redis, the keys."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from callers import assert_same_audio, client_of
from calling import Callers, breaking, calling, through_gateway, through_triton
from gateway_server import GatewayProcess
from network import network_to
from outages import GRANDPA, MODELS, SPOKEN, WORDS
from qwen3_tts_client import EngineFailed
from qwen3_tts_engine.launch.ports import free_ports
from qwen3_tts_engine.launch.server import Server
from qwen3_tts_gateway.key_file import KeyFile, KeyTerms
from real_server import ROOT, clean_server, on_free_ports, wait_until
from redis_server import kill_redis, running_redis

pytestmark = pytest.mark.triton

WAIT_S = 20
BACK_S = 120
DURABLE = ("--appendonly", "yes", "--appendfsync", "always")  # Redis keeps what it has confirmed
CHUNK_TIMEOUT_S = "3"  # longest wait for Triton's next chunk


@contextmanager
def gateway_at(directory: Path, grpc_port: int, **environment: str) -> Iterator[GatewayProcess]:
    directory.mkdir(exist_ok=True)
    given = {"TRITON_GRPC_PORT": str(grpc_port), "CHUNK_TIMEOUT_S": CHUNK_TIMEOUT_S, **environment}
    with GatewayProcess(directory, **given) as gateway:
        gateway.wait_until_ready()
        yield gateway


def under_load(gateway: GatewayProcess) -> AbstractContextManager[Callers]:
    return breaking(*[through_gateway(gateway.url)] * 3, wait_s=WAIT_S, back_s=BACK_S)


def test_a_network_that_is_cut(server: Server, tmp_path: Path) -> None:
    with network_to(server.grpc_port) as network, gateway_at(tmp_path, network.port) as gateway:
        with under_load(gateway) as callers:
            network.cut()
            wait_until(lambda: len(callers.errors()) >= 3, "callers hear of it")
            network.mend()
        assert all("503" in error or "Protocol" in error for error in callers.errors()), callers.errors()


def test_a_network_that_carries_nothing_and_says_nothing(server: Server, tmp_path: Path) -> None:
    with (
        network_to(server.grpc_port) as network,
        gateway_at(tmp_path, network.port) as gateway,
        under_load(gateway) as callers,
    ):
        network.stop()
        wait_until(lambda: len(callers.errors()) >= 3, "callers hear of it")
        network.mend()


def test_a_network_that_is_slow_costs_time_and_nothing_else(server: Server, tmp_path: Path) -> None:
    with network_to(server.grpc_port) as network, gateway_at(tmp_path, network.port) as gateway:
        with under_load(gateway) as callers:
            network.delay_s = 0.2
        assert callers.errors() == []


def test_limits_whose_redis_is_killed_hold_nobody_up_and_hold_again_once_it_is_back(
    server: Server, tmp_path: Path
) -> None:
    [port] = free_ports(1)
    limits = {"LIMITS_STORE": f"redis://127.0.0.1:{port}/0", "MAX_STREAMS": "4"}
    with gateway_at(tmp_path, server.grpc_port, **limits) as gateway:
        one_more = through_gateway(gateway.url)
        with running_redis(tmp_path, port) as url, under_load(gateway) as callers:
            kill_redis(url)
        assert callers.errors() == []
        with calling(*[one_more] * 5) as callers:
            pass
        assert callers.errors() == []
        with running_redis(tmp_path, port), calling(*[one_more] * 4) as callers:
            wait_until(lambda: one_more().startswith("429"), "limits hold again", timeout_s=BACK_S)
        assert all(error.startswith("429") for error in callers.errors()), callers.errors()


def test_saved_voices_whose_redis_is_killed_or_falls_silent_are_there_again_with_it(
    tiny_checkpoints: Path, tmp_path: Path
) -> None:
    [port] = free_ports(1)
    models = tmp_path / "models"
    for model in MODELS:
        shutil.copytree(ROOT / "model_repository" / model, models / model)
    with ExitStack() as stack:
        redis = stack.enter_context(running_redis(tmp_path, port, *DURABLE))
        network = stack.enter_context(network_to(port))
        environment = {
            "QWEN_TTS_CUSTOM_VOICE_MODEL": str(tiny_checkpoints / "custom_voice"),
            "QWEN_TTS_BASE_MODEL": str(tiny_checkpoints / "base"),
            "VOICE_STORE": f"redis://127.0.0.1:{network.port}/0",
        }
        launch = on_free_ports(environment, model_repository=models, log_path=tmp_path / "tritonserver.log")
        server = stack.enter_context(clean_server(launch))
        tts = stack.enter_context(client_of(server))
        tts.voices.save("grandpa", GRANDPA)

        def as_grandpa() -> NDArray[np.float32]:
            return tts.synthesize(WORDS, voice="grandpa", **SPOKEN).samples

        undisturbed = as_grandpa()
        callers = stack.enter_context(calling(*[through_triton(server.grpc_port)] * 2))

        network.stop()
        for told in ("has not answered for 3 s", "given a rest"):
            with pytest.raises(EngineFailed, match=told):
                as_grandpa()
        assert_same_audio(tts.synthesize(WORDS, GRANDPA, **SPOKEN).samples, undisturbed)  # brought along
        network.mend()
        wait_until(lambda: is_heard(as_grandpa), "grandpa is heard again")
        assert_same_audio(as_grandpa(), undisturbed)

        kill_redis(redis)
        for ask in (lambda: tts.voices.save("grandma", GRANDPA), as_grandpa):
            with pytest.raises(EngineFailed, match="voice store"):
                ask()
        with running_redis(tmp_path, port, *DURABLE):
            assert [voice.name for voice in tts.voices.list()] == ["grandpa"]
            assert_same_audio(as_grandpa(), undisturbed)
            tts.voices.save("grandma", GRANDPA)
    assert callers.errors() == []


def is_heard(ask: Callable[[], object]) -> bool:
    try:
        ask()
    except EngineFailed:
        return False
    return True


def test_a_key_that_is_rotated_breaks_off_nobody_who_is_spoken_to(server: Server, tmp_path: Path) -> None:
    keys = KeyFile(tmp_path / "keys.json")
    now = datetime.now(timezone.utc)
    old = keys.create(KeyTerms(name="old", scopes=("synth",)), now)
    with gateway_at(tmp_path, server.grpc_port, API_KEYS_FILE=str(tmp_path / "keys.json")) as gateway:
        with calling(*[through_gateway(gateway.url, old)] * 3) as callers:
            new = keys.create(KeyTerms(name="new", scopes=("synth",)), now)
            keys.revoke("old")
            wait_until(lambda: len(callers.errors()) >= 3, "the old key is refused")
        # No broken stream among them.
        assert all(error.startswith("401") for error in callers.errors()), callers.errors()
        assert through_gateway(gateway.url, new)() == ""
