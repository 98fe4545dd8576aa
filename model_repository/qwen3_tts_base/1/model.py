"""Qwen3-TTS Base: a voice from a recording of it."""

from qwen3_tts_engine.triton.base import BaseModel


class TritonPythonModel(BaseModel):
    pass
