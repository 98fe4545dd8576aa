"""Upstream and our engine on the same tiny checkpoints, and a way to speak with each."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from qwen3_tts_engine.config import EngineConfig
from qwen3_tts_engine.device import Graphs
from qwen3_tts_engine.engine import Engine
from speaking import Speaker
from upstream_oracle import Upstream


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def upstream(tiny_checkpoints: Path) -> Callable[[str], Upstream]:
    """`upstream("custom_voice")`: qwen_tts with that checkpoint's weights in float32."""
    loaded: dict[str, Upstream] = {}

    def load(name: str) -> Upstream:
        if name not in loaded:
            loaded[name] = Upstream(tiny_checkpoints / name)
        return loaded[name]

    return load


@pytest.fixture(scope="session")
def load_engine(tiny_checkpoints: Path) -> Callable[..., Engine]:
    """A fresh engine, not started: tests step it by hand, and its time stands still."""

    def load(
        name: str = "custom_voice", task: str = "", graphs: Graphs | None = None, **config: object
    ) -> Engine:
        settings = EngineConfig(checkpoint=name, device="cpu", **config)  # type: ignore[arg-type]
        task = task or name.removesuffix("_0b6")
        return Engine.load(settings, task, tiny_checkpoints, clock=lambda: 0.0, graphs=graphs)

    return load


@pytest.fixture(scope="session")
def speaker_of(load_engine: Callable[..., Engine]) -> Callable[[str], Speaker]:
    """`speaker_of("custom_voice")`: one engine with four slots for the whole session."""
    loaded: dict[str, Speaker] = {}

    def load(name: str) -> Speaker:
        if name not in loaded:
            loaded[name] = Speaker(load_engine(name, slots=4, waiting_room=0))
        return loaded[name]

    return load


@pytest.fixture
def speaker(speaker_of: Callable[[str], Speaker]) -> Speaker:
    return speaker_of("custom_voice")
