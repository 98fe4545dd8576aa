"""A finished utterance and the files it can become."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import soundfile

Samples: TypeAlias = npt.NDArray[np.float32]
"""Mono audio in [-1, 1]: float32 [num_samples]."""


@dataclass(frozen=True, eq=False)
class Audio:
    """Speech in memory.

    Attributes:
        samples: float32 [num_samples], mono, in [-1, 1].
        sample_rate: samples per second.
        finish_reason: `stop`, or why it is shorter than the text: `length` (the frame limit) or `runaway`.
        num_frames: frames the server generated for the utterance; one frame is 80 ms.
    """

    samples: Samples
    sample_rate: int
    finish_reason: str
    num_frames: int

    @property
    def duration_s(self) -> float:
        return len(self.samples) / self.sample_rate

    def save(self, path: str | Path) -> Path:
        """Write a file in the format its extension names: wav and flac in 16 bit, ogg, mp3.

        Raises:
            ValueError: libsndfile has no such format.
        """
        soundfile.write(path, self.samples, self.sample_rate, format=file_format(path))
        return Path(path)

    def to_wav(self) -> bytes:
        """The bytes of a 16-bit PCM WAV file."""
        file = io.BytesIO()
        soundfile.write(file, self.samples, self.sample_rate, format="WAV", subtype="PCM_16")
        return file.getvalue()


def file_format(path: str | Path) -> str:
    """libsndfile's name for the format that an extension names.

    Raises:
        ValueError: there is none.
    """
    extension = Path(path).suffix[1:]
    if extension.upper() not in soundfile.available_formats():
        known = ", ".join(sorted(soundfile.available_formats())).lower()
        raise ValueError(f"cannot write {str(path)!r}: its extension must be one of {known}")
    return extension.upper()
