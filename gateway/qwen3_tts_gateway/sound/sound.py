"""How an utterance is to be heard."""

from __future__ import annotations

from dataclasses import dataclass

from qwen3_tts_gateway.errors import InvalidInput
from qwen3_tts_gateway.sound.formats import FORMATS

# What the encoder of every format takes; 22 050 and 44 100 are missing because Opus has neither.
SAMPLE_RATES = (8_000, 16_000, 24_000, 48_000)

MIN_SPEED = 0.25
MAX_SPEED = 4.0


@dataclass(frozen=True)
class Sound:
    """How an utterance is to be heard.

    Attributes:
        format: a key of `FORMATS`.
        sample_rate: one of `SAMPLE_RATES`; None: the format's own, see `heard_rate`.
        speed: 2 is twice as fast; the pitch stays.

    Raises:
        InvalidInput: one of them is not to be had.
    """

    format: str = "mp3"
    sample_rate: int | None = None
    speed: float = 1.0

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise InvalidInput(
                f"response_format is {self.format!r}; it must be one of {', '.join(FORMATS)}",
                param="response_format",
            )
        if self.sample_rate is not None and self.sample_rate not in SAMPLE_RATES:
            raise InvalidInput(
                f"sample_rate is {self.sample_rate!r}; it must be one of {', '.join(map(str, SAMPLE_RATES))}",
                param="sample_rate",
            )
        # Not `or`: NaN is on neither side of a limit.
        if not MIN_SPEED <= self.speed <= MAX_SPEED:
            raise InvalidInput(
                f"speed is {self.speed!r}; it must be from {MIN_SPEED} to {MAX_SPEED}", param="speed"
            )

    @property
    def heard_rate(self) -> int:
        """Samples per second, as asked for or as the format has it."""
        return self.sample_rate or FORMATS[self.format].sample_rate

    @property
    def media_type(self) -> str:
        return FORMATS[self.format].media_type

    @property
    def extension(self) -> str:
        """Of a file, without the dot."""
        return FORMATS[self.format].extension
