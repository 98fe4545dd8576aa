"""A finished utterance and the files it can become."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import soundfile

_NOT_IN_ONE_FILE = ("RAW", "SD2")  # formats that keep the sample rate elsewhere

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
            OSError: the file cannot be written.
        """
        path = Path(path)
        path.write_bytes(self._encoded(file_format(path)))
        return path

    def to_wav(self) -> bytes:
        """The bytes of a 16-bit PCM WAV file."""
        return self._encoded("WAV", "PCM_16")

    def _encoded(self, form: str, subtype: str | None = None) -> bytes:
        """In memory first: libsndfile calls whatever is wrong with a file a `System error`."""
        file = io.BytesIO()
        try:
            soundfile.write(file, self.samples, self.sample_rate, format=form, subtype=subtype)
        except soundfile.LibsndfileError as error:
            raise ValueError(f"this audio cannot be written as {form.lower()}: {error}") from error
        return file.getvalue()


def file_format(path: str | Path) -> str:
    """libsndfile's name for the format that an extension names.

    Raises:
        ValueError: there is none.
    """
    extension = Path(path).suffix[1:].upper()
    known = sorted(set(soundfile.available_formats()).difference(_NOT_IN_ONE_FILE))
    if extension not in known:
        raise ValueError(
            f"cannot write {str(path)!r}: its extension must be one of {', '.join(known).lower()}"
        )
    return extension
