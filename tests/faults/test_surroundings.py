"""What Triton and the gateway stand on breaks while callers are spoken to: the network, Redis, the keys."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

import pytest

from calling import Callers, calling, through_gateway
from gateway_server import GatewayProcess
from network import network_to
from qwen3_tts_engine.launcher import Server, free_ports
from qwen3_tts_gateway.key_file import KeyFile, KeyTerms
from real_server import wait_until
from redis_server import running_redis

pytestmark = pytest.mark.triton

WAIT_S = 20
BACK_S = 120
CHUNK_TIMEOUT_S = "3"  # longest wait for Triton's next chunk


@contextmanager
def gateway_at(directory: Path, grpc_port: int, **environment: str) -> Iterator[GatewayProcess]:
    directory.mkdir(exist_ok=True)
    given = {"TRITON_GRPC_PORT": str(grpc_port), "CHUNK_TIMEOUT_S": CHUNK_TIMEOUT_S, **environment}
    with GatewayProcess(directory, **given) as gateway:
        gateway.wait_until_ready()
        yield gateway


@contextmanager
def under_load(gateway: GatewayProcess, key: str = "") -> Iterator[Callers]:
    """Nobody waits too long for audio or an error, and after the block all are served again."""
    with calling(*[through_gateway(gateway.url, key)] * 3) as callers:
        began_s = time.monotonic()
        yield callers
        mended_s = time.monotonic()
        wait_until(lambda: callers.all_served_since(mended_s), "all are served again", timeout_s=BACK_S)
    assert callers.longest_wait_s(began_s) < WAIT_S


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
    limits = {"LIMITS_STORE": f"redis://127.0.0.1:{port}/0", "MAX_STREAMS": "8"}
    with gateway_at(tmp_path, server.grpc_port, **limits) as gateway:
        with running_redis(tmp_path, port), under_load(gateway) as callers:
            pass
        with under_load(gateway) as callers:  # Redis is gone
            pass
        assert callers.errors() == []
        with running_redis(tmp_path, port), under_load(gateway) as callers:
            pass
        assert callers.errors() == []


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
