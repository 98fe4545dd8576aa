"""Models of the repository in this process, with a stand-in for Triton around them."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from fakes import triton_python_backend_utils as pb_utils
from python_backend import HostedModel


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def load_model(
    tiny_checkpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., HostedModel]]:
    """`load_model(slots="1")`: the CustomVoice model with that parameter; let go after the test."""
    for variable in (
        "QWEN_TTS_CUSTOM_VOICE_MODEL",
        "QWEN_TTS_TOKENIZER",
        "CUDA_DEVICE",
        "MODEL_DTYPE",
        "MODEL_PROFILE",
    ):
        monkeypatch.delenv(variable, raising=False)
    pb_utils.page.clear()
    hosted: list[HostedModel] = []

    def load(name: str = "qwen3_tts_custom_voice", instances: int = 1, **parameters: str) -> HostedModel:
        checkpoint = {"checkpoint": str(tiny_checkpoints / name.removeprefix("qwen3_tts_"))}
        hosted.append(HostedModel(name, checkpoint | parameters, instances))
        return hosted[-1]

    yield load
    for model in hosted:
        model.finalize()


@pytest.fixture
def talker(load_model: Callable[..., HostedModel]) -> HostedModel:
    return load_model()
