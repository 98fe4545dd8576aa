"""More tritonservers, for a test that asks for one of its own."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from qwen3_tts_engine.launch.server import Server
from real_server import clean_server, on_free_ports

TOY_MODELS = Path(__file__).parent / "toy_models"


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Start one more server: `start_server(model_repository=…, environment={…}, extra_args=(…,))`.

    Each argument is a field of LaunchConfig; `environment` is put over the test's own.
    """
    with ExitStack() as stack:

        def start(**fields: Any) -> Server:
            fields.setdefault("log_path", tmp_path / "tritonserver.log")
            return stack.enter_context(clean_server(on_free_ports(**fields)))

        yield start


@pytest.fixture
def toy_repository(tmp_path: Path) -> Callable[..., Path]:
    """A temporary model repository of some of the toy models."""

    def make(*names: str) -> Path:
        for name in names:
            fresh = shutil.ignore_patterns("__pycache__")
            shutil.copytree(TOY_MODELS / name, tmp_path / "models" / name, ignore=fresh)
        return tmp_path / "models"

    return make
