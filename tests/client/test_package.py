"""What the package promises to whoever installs it."""

import subprocess
import sys
from importlib import resources

import qwen3_tts_client


def test_the_exported_names_are_these():
    assert qwen3_tts_client.__all__ == [
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
    assert all(hasattr(qwen3_tts_client, name) for name in qwen3_tts_client.__all__)


def test_its_types_are_for_everyone():
    assert resources.files(qwen3_tts_client).joinpath("py.typed").is_file()


def test_importing_it_never_loads_torch():
    script = "import sys, qwen3_tts_client.cli; print({'torch', 'transformers'} & sys.modules.keys())"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
