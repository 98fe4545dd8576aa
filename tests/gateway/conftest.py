"""A gateway in front of a scripted Triton."""

from collections.abc import Iterator

import httpx
import pytest

from fakes.triton_server import FakeTriton, says, triton
from gateway_server import GatewayServer, running_gateway, settings


@pytest.fixture
def fake_triton() -> Iterator[FakeTriton]:
    """Says three chunks of one frame to whoever asks, unless a test gives it another script."""
    models = ("qwen3_tts_custom_voice", "qwen3_tts_voice_design", "qwen3_tts_base", "create_voice", "voices")
    with triton(says(3), models=models) as fake:
        yield fake


@pytest.fixture
def gateway(fake_triton: FakeTriton) -> Iterator[GatewayServer]:
    """An open gateway in front of `fake_triton`."""
    with running_gateway(settings(triton_grpc_port=fake_triton.port)) as running:
        yield running


@pytest.fixture
def http(gateway: GatewayServer) -> Iterator[httpx.Client]:
    # Nothing is encrypted here, and to read the authorities' certificates takes longer than most tests.
    with httpx.Client(base_url=gateway.url, timeout=30, verify=False) as client:
        yield client
