"""From the engine's audio to what a caller hears, chunk by chunk."""

from qwen3_tts_gateway.sound.encoder import SoundEncoder, base64_text, encode_whole, open_encoder
from qwen3_tts_gateway.sound.formats import FORMATS, Format
from qwen3_tts_gateway.sound.reshaper import SPEECH_RATE
from qwen3_tts_gateway.sound.sound import MAX_SPEED, MIN_SPEED, SAMPLE_RATES, Sound

__all__ = [
    "FORMATS",
    "MAX_SPEED",
    "MIN_SPEED",
    "SAMPLE_RATES",
    "SPEECH_RATE",
    "Format",
    "Sound",
    "SoundEncoder",
    "base64_text",
    "encode_whole",
    "open_encoder",
]
