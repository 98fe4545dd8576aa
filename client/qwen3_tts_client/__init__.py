"""Speak with Qwen3-TTS on NVIDIA Triton: `SpeechClient`, and `AsyncSpeechClient` for asyncio."""

from qwen3_tts_client.aio import AsyncSpeechClient, AsyncSpeechStream
from qwen3_tts_client.audio import Audio
from qwen3_tts_client.client import SpeechClient, SpeechStream
from qwen3_tts_client.connection import ServerInfo
from qwen3_tts_client.errors import (
    Cancelled,
    EngineFailed,
    InvalidRequest,
    KeyRefused,
    Overloaded,
    ServerUnavailable,
    SpeechError,
    UnknownVoice,
)
from qwen3_tts_client.models import ModelState
from qwen3_tts_client.request import SpeechOptions
from qwen3_tts_client.voice import (
    BuiltIn,
    ClonedVoice,
    DesignedVoice,
    FoundVoice,
    Saved,
    Voice,
    VoicePrompt,
    model_of,
)
from qwen3_tts_client.voices import SavedVoice, Speaker

__all__ = [
    "AsyncSpeechClient",
    "AsyncSpeechStream",
    "Audio",
    "BuiltIn",
    "Cancelled",
    "ClonedVoice",
    "DesignedVoice",
    "EngineFailed",
    "FoundVoice",
    "InvalidRequest",
    "KeyRefused",
    "ModelState",
    "Overloaded",
    "Saved",
    "SavedVoice",
    "ServerInfo",
    "ServerUnavailable",
    "Speaker",
    "SpeechClient",
    "SpeechError",
    "SpeechOptions",
    "SpeechStream",
    "UnknownVoice",
    "Voice",
    "VoicePrompt",
    "model_of",
]
