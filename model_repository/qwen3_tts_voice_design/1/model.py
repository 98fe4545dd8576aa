"""Qwen3-TTS VoiceDesign: a voice from its description."""

from qwen3_tts_engine.triton.speech import SpeechModel


class TritonPythonModel(SpeechModel):
    task = "voice_design"
