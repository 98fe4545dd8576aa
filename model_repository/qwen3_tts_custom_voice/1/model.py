"""Qwen3-TTS CustomVoice: built-in speakers, with an optional style instruction."""

from qwen3_tts_engine.triton.speech import SpeechModel


class TritonPythonModel(SpeechModel):
    task = "custom_voice"
