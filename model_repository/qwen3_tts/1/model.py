"""Qwen3-TTS, whole utterances: any task, one request, one response."""

from qwen3_tts_engine.triton.whole import WholeUtterance


class TritonPythonModel(WholeUtterance):
    pass
