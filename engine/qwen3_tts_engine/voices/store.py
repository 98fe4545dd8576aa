"""Where voices are kept: one protocol, and one function that reads VOICE_STORE."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from qwen3_tts_engine.errors import ConfigError
from qwen3_tts_engine.voices.voice import Voice, VoiceSummary

__all__ = ["Voice", "VoiceStore", "VoiceSummary", "open_store"]

LOCAL = ("", "file", "local")
REDIS = ("redis", "rediss", "unix")


class VoiceStore(Protocol):
    """Saved voices by name. Any number of processes may use one store at once; each sees what the others did.

    Every method raises EngineFailed when the store cannot be read or written; what was saved stays as it was.
    """

    def save(self, voice: Voice) -> None:
        """Keep a voice, in place of one that had its name: whoever reads gets the old one or the new one."""

    def get(self, name: str) -> Voice:
        """Raise NotFound for a name nobody saved, EngineFailed for a voice that has been damaged since."""

    def list(self) -> list[VoiceSummary]:
        """All voices by name, without their tensors; a damaged one does not hide the others."""

    def delete(self, name: str) -> None:
        """Forget a voice for good; raises NotFound for a name nobody saved."""


def open_store(url: str, base: Path = Path()) -> VoiceStore:
    """The store at an address.

    Args:
        url: `file:///directory` or a plain path, `redis://host:6379/0`, or any URL fsspec has a driver for,
            such as `s3://bucket/prefix`.
        base: where a relative plain path starts.

    Raises:
        ConfigError: for an address that leads nowhere. A Redis or a bucket may be out of reach for now.
    """
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise ConfigError(f"VOICE_STORE is no address of a voice store: {error}") from None
    if parts.scheme in LOCAL:
        from qwen3_tts_engine.voices.file_store import open_directory

        if parts.netloc not in ("", "localhost"):
            raise ConfigError(
                f"VOICE_STORE is {url!r}, a file of the host {parts.netloc!r}; write file:///directory"
            )
        return open_directory(base / Path(unquote(parts.path) if parts.scheme else url).expanduser())
    if parts.scheme in REDIS:
        from qwen3_tts_engine.voices.redis_store import RedisStore

        return RedisStore.open(url)
    from qwen3_tts_engine.voices.fsspec_store import open_filesystem

    return open_filesystem(url)
