"""What every room of the tests shares."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway_server import GatewayServer, running_gateway, settings
from qwen3_tts_engine.launch.server import Server
from real_server import ROOT, clean_server, on_free_ports

# Before anything imports torch: test processes run side by side, and one thread each is the fastest.
os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(scope="session")
def tiny_checkpoints() -> Path:
    """The directory of the generated checkpoints; made on first use, kept between runs."""
    from qwen3_tts_engine.tiny import build_all

    directory = ROOT / "checkpoints" / "tiny"
    build_all(directory)
    return directory


@pytest.fixture(scope="session")
def server(tiny_checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with the model repository as it is, on free ports."""
    directory = tmp_path_factory.mktemp("server")
    config = on_free_ports(
        model_repository=ROOT / "model_repository",
        log_path=directory / "tritonserver.log",
        environment={"VOICE_STORE": str(directory / "voices")},
    )
    with clean_server(config) as server:
        yield server


@pytest.fixture(scope="session")
def real_gateway(server: Server) -> Iterator[GatewayServer]:
    """An open gateway in front of that server."""
    with running_gateway(settings(triton_grpc_port=server.grpc_port)) as running:
        yield running
