"""Reference recordings of any common format, as mono PCM at 24 kHz."""

from qwen3_tts_engine.triton.reference_audio import ReferenceAudioModel


class TritonPythonModel(ReferenceAudioModel):
    pass
