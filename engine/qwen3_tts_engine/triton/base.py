"""The base model: speaks with recorded voices, those that come along and those that were saved."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from qwen3_tts_engine.config import BaseConfig, EngineConfig
from qwen3_tts_engine.triton.reading import FindVoice
from qwen3_tts_engine.triton.speech import SpeechModel
from qwen3_tts_engine.voices.lookup import Lookup
from qwen3_tts_engine.voices.mixing import resolve_voice
from qwen3_tts_engine.voices.store import open_store


class BaseModel(SpeechModel):
    """Finds a saved voice, or mixes several, before the request takes a slot."""

    task = "base"
    config_kind = BaseConfig

    def _saved_voices(self, config: EngineConfig, directory: Path) -> FindVoice:
        assert isinstance(config, BaseConfig)
        store = open_store(config.voice_store, directory)
        return Lookup(partial(resolve_voice, store, num_values=self.engine.speech_config.talker.hidden_size))
