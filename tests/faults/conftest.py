"""One whole system for all that is done to it: each fault finds it well, and leaves it well."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from outages import BREAKABLE, MODELS, PATIENCE_S, SPEAKING, TRITON_API_KEY, Service
from real_server import ROOT, System


@pytest.fixture(scope="module")
def running_service(tiny_checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Left at the end as an operator leaves it: by one signal, with nothing in flight."""
    directory = tmp_path_factory.mktemp("service")
    for model in MODELS:
        shutil.copytree(ROOT / "model_repository" / model, directory / "models" / model)
    model_py, faults = directory / "models" / SPEAKING / "1" / "model.py", directory / "faults"
    faults.mkdir()
    model_py.write_text(f"{model_py.read_text()}\n{BREAKABLE.format(faults=str(faults))}")
    environment = {
        "QWEN_TTS_CUSTOM_VOICE_MODEL": str(tiny_checkpoints / "custom_voice"),
        "QWEN_TTS_BASE_MODEL": str(tiny_checkpoints / "base"),
        "VOICE_STORE": str(directory / "voices"),
        "TRITON_API_KEY": TRITON_API_KEY,
    }
    with System(directory / "models", directory, **environment) as system:
        reader = threading.Thread(target=system.rest)  # or what it says would fill the pipe
        reader.start()
        yield (service := Service(system, faults))
        last, gateway = service.footprint, system.child("qwen3_tts_gateway")
        system.process.terminate()
        assert system.process.wait(PATIENCE_S) == 0
        reader.join()
        last.assert_gone()
        assert not gateway.is_running()


@pytest.fixture
def service(running_service: Service) -> Iterator[Service]:
    """It is well before the fault, and again after it."""
    running_service.assert_well()
    before = running_service.footprint
    yield running_service
    running_service.assert_well()
    if running_service.footprint.group != before.group:  # another server, which has replaced it
        before.assert_gone()
