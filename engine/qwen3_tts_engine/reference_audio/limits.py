"""What a reference recording may be: an operator's limits and the fixed ones."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from qwen3_tts_engine.config import own_parameters, typed
from qwen3_tts_engine.errors import ConfigError

SAMPLE_RATE = 24_000  # of what is handed on

MIN_RATE, MAX_RATE = 1_000, 384_000  # Hz
MAX_VALUES_PER_S = 8 * 192_000  # rate x channels: the time and memory a second of recording may cost

# A file of floats may exceed full scale, and so does what lossy codecs give back; upstream takes both as they
# are, and so do we. Beyond this (12 dB) it is no level but a scale, most often that of 16-bit integers.
MAX_PEAK = 4.0
SILENCE = 10 ** (-60 / 20)  # a peak below -60 dBFS


@dataclass(frozen=True)
class Limits:
    """What an operator may set.

    Args:
        max_bytes: of the file itself; base64 of it may be a third longer.
        min_seconds: the shortest recording, both ends included.
        max_seconds: the longest.
        timeout_seconds: how long one file may be worked on before it counts as malicious.
    """

    max_bytes: int = 10 << 20
    min_seconds: float = 1.0
    max_seconds: float = 30.0
    timeout_seconds: float = 10.0

    def __post_init__(self) -> None:
        if self.max_bytes < 1:
            raise ConfigError(f"max_bytes is {self.max_bytes}; it must be at least 1")
        if not 0 <= self.min_seconds < self.max_seconds < math.inf:
            raise ConfigError(
                f"min_seconds is {self.min_seconds:g} and max_seconds {self.max_seconds:g};"
                " the first must be 0 or more, the second greater"
            )
        if not 0 < self.timeout_seconds < math.inf:
            raise ConfigError(f"timeout_seconds is {self.timeout_seconds:g}; it must be more than 0")

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, str]) -> Limits:
        """Read config.pbtxt's `parameters`.

        Raises:
            ConfigError: for a name or a value that means nothing here.
        """
        return cls(**{name: typed(cls, name, text) for name, text in own_parameters(parameters).items()})

    @property
    def seconds(self) -> str:
        """For messages."""
        return f"{self.min_seconds:g} to {self.max_seconds:g} s are allowed"
