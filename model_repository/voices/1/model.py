"""Saved voices and built-in speakers: list, describe, save, delete."""

from qwen3_tts_engine.triton.voices import VoicesModel


class TritonPythonModel(VoicesModel):
    pass
