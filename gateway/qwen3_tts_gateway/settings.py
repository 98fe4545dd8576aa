"""What the environment and `.env` say (see `.env.example`): frozen, and refused at start if senseless."""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, FilePath, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict


def _split(value: Any) -> Any:
    """`a, b` as a tuple; an empty string as none."""
    if isinstance(value, str):
        return tuple(part for part in (part.strip() for part in value.split(",")) if part)
    return value


def _read(value: Any) -> Any:
    """JSON as what it says; the library's own reading of it names no variable."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError as error:
        raise ValueError(f"it is no JSON: {error}") from None


CommaSeparated = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]

# OpenAI's thirteen voices as built-in speakers of a like temper; a name the checkpoint lacks is refused.
OPENAI_VOICES = {
    "alloy": "serena",
    "ash": "ryan",
    "ballad": "aiden",
    "cedar": "uncle_fu",
    "coral": "vivian",
    "echo": "dylan",
    "fable": "eric",
    "marin": "serena",
    "nova": "vivian",
    "onyx": "uncle_fu",
    "sage": "sohee",
    "shimmer": "ono_anna",
    "verse": "ryan",
}


MOST_BATCH_ITEMS = 1024
"""However many an operator allows: a longer list is refused unread."""


class SettingsError(Exception):
    """A setting asks for what cannot be; the message names it."""


class Settings(BaseSettings):
    """Every field is the environment variable of the same name in capitals."""

    model_config = SettingsConfigDict(env_file=".env", env_ignore_empty=True, extra="ignore", frozen=True)

    host: str = Field("127.0.0.1", description="where the gateway listens")
    port: int = Field(8080, ge=1, le=65535, description="the gateway's port")
    shutdown_notice_s: float = Field(
        0, ge=0, le=60, description="how long /health/ready says no before the port closes, in seconds"
    )
    log_level: str = Field("INFO", description="DEBUG, INFO, WARNING or ERROR")

    triton_host: str = Field("127.0.0.1", description="where Triton is")
    triton_grpc_port: int = Field(8001, ge=1, le=65535, description="Triton's gRPC port")
    triton_api_key: str | None = Field(None, description="key of Triton's restricted APIs")
    triton_ca_file: FilePath | None = Field(
        None, description="PEM of the authority Triton's certificate is from; turns TLS on"
    )
    chunk_timeout_s: float = Field(30.0, gt=0, description="longest wait for Triton's next chunk, in seconds")
    queue_timeout_s: float = Field(
        60.0,
        ge=0,
        description="how much longer to wait for the first one, as long as Triton is alive, in seconds",
    )
    preload_models: bool = Field(True, description="false: a model is loaded on first use")
    unload_after_minutes: float | None = Field(
        None,
        gt=0,
        description="unload a model nobody used for so long; only where models are loaded on first use",
    )

    api_keys: CommaSeparated = Field((), description="keys with every scope, comma-separated")
    api_keys_file: str | None = Field(
        None, description="JSON file of hashed keys, written by `qwen3-tts-gateway keys`"
    )
    requests_per_minute: int | None = Field(
        None, gt=0, description="of each key that has no limit of its own"
    )
    characters_per_minute: int | None = Field(None, gt=0, description="likewise")
    max_streams: int | None = Field(None, gt=0, description="utterances at once, likewise")
    limits_store: str | None = Field(None, description="redis://… where several gateways share the limits")

    max_characters: int = Field(4096, gt=0, description="longest text of a request")
    max_batch_items: int = Field(32, gt=0, le=MOST_BATCH_ITEMS, description="texts of a batch")
    max_batch_characters: int = Field(
        16384, gt=0, description="of all texts of a batch, whose audio is in memory until the last is spoken"
    )
    openai_voices: Annotated[dict[str, str], NoDecode, BeforeValidator(_read)] = Field(
        OPENAI_VOICES, description="OpenAI's voice names: JSON, name to speaker or saved voice"
    )
    cors_origins: CommaSeparated = Field(
        (), description="origins whose pages may call, comma-separated; * is any"
    )
    reference_hosts: CommaSeparated = Field(
        (), description="hosts that recordings may be fetched from; none: recordings by URL are refused"
    )
    otel_exporter_otlp_endpoint: str | None = Field(
        None, description="OpenTelemetry collector, http://host:4318; unset: no traces"
    )

    @field_validator("log_level")
    @classmethod
    def _known_level(cls, value: str) -> str:
        levels = ("DEBUG", "INFO", "WARNING", "ERROR")
        if value.upper() not in levels:
            raise ValueError(f"{value!r} is none of {', '.join(levels)}")
        return value.upper()

    @field_validator("openai_voices")
    @classmethod
    def _lower_case(cls, voices: dict[str, str]) -> dict[str, str]:
        return {alias.lower(): speaker for alias, speaker in voices.items()}

    @property
    def triton_url(self) -> str:
        host = f"[{self.triton_host}]" if ":" in self.triton_host else self.triton_host
        return f"{host}:{self.triton_grpc_port}"
