"""Which checkpoint made a voice: kept with it, and told to whoever asks another size of model to speak it."""

from __future__ import annotations

import hashlib
from pathlib import Path

from qwen3_tts_engine.model.config import SpeechConfig

SHOWN_DIGITS = 12  # of a revision or a hash


def identify(directory: Path, config: SpeechConfig) -> str:
    """Such as `qwen3_tts 1b7 base (2048 values) Qwen/Qwen3-TTS-12Hz-1.7B-Base@5d83992436ea`.

    Args:
        directory: where the checkpoint is, as `resolve` returns it.
        config: what its config.json says.
    """
    kind = f"qwen3_tts {config.tts_model_size} {config.tts_model_type}"
    return f"{kind} ({config.talker.hidden_size} values) {_revision(directory)}"


def _revision(directory: Path) -> str:
    """A snapshot's name (`models--owner--name/snapshots/revision`), or else the configuration's hash."""
    repository, folder = directory.parent.parent.name, directory.parent.name
    if folder == "snapshots" and repository.startswith("models--"):
        hub_id = repository.removeprefix("models--").replace("--", "/", 1)
        return f"{hub_id}@{directory.name[:SHOWN_DIGITS]}"
    digest = hashlib.sha256((directory / "config.json").read_bytes()).hexdigest()
    return f"config {digest[:SHOWN_DIGITS]}"
