"""A recording of somebody speaking in, the voice prompt of qwen3_tts_base out."""

from qwen3_tts_engine.triton.voice_encoder import VoiceEncoderModel


class TritonPythonModel(VoiceEncoderModel):
    pass
