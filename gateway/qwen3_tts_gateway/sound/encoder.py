"""Samples in, bytes out: one encoder and one container for each utterance, whatever its format."""

from __future__ import annotations

import base64
import io
from types import TracebackType

import av
import numpy as np
import numpy.typing as npt

from qwen3_tts_client.audio import Samples
from qwen3_tts_gateway.sound.formats import FORMATS
from qwen3_tts_gateway.sound.reshaper import SPEECH_RATE, Reshaper, audio_frame
from qwen3_tts_gateway.sound.sound import Sound


def open_encoder(sound: Sound, *, is_streamed: bool = True) -> SoundEncoder:
    """An encoder for one utterance; finish or close it.

    Args:
        sound: how it is to be heard.
        is_streamed: whether bytes are wanted as soon as they can be played. Otherwise all of them come at
            the end, and the file's header tells how long it is.
    """
    return SoundEncoder(sound, is_streamed=is_streamed)


def encode_whole(sound: Sound, samples: Samples) -> bytes:
    """A file whose header tells how long it is, where its format has a field for that."""
    with open_encoder(sound, is_streamed=False) as encoder:
        return encoder.encode(samples) + encoder.finish()


def base64_text(data: bytes) -> str:
    """Sound where only text can go: in JSON, and in events."""
    return base64.b64encode(data).decode()


class SoundEncoder:
    """An utterance being encoded.

    Without a single sample it is a header alone as WAV and FLAC, and b"" in every other format.
    """

    def __init__(self, sound: Sound, *, is_streamed: bool) -> None:
        self._format = FORMATS[sound.format]
        self._rate = sound.heard_rate
        self._reshaper: Reshaper | None = None
        if sound.speed != 1 or self._rate != SPEECH_RATE:
            self._reshaper = Reshaper(sound.speed, self._rate)
        self._file = _Pipe() if is_streamed else _Disk()
        self._container = av.open(
            self._file,
            "w",
            format=self._format.container,
            container_options={
                **self._format.container_options,
                **(self._format.streamed_options if is_streamed else {}),
                "flush_packets": str(int(is_streamed)),
            },
        )
        self._stream = self._container.add_stream(
            self._format.codec,
            rate=self._rate,
            layout="mono",
            format=self._format.sample_format,
            bit_rate=self._format.bit_rate,
            options=dict(self._format.codec_options),
        )
        if self._format.has_empty_file:
            self._container.start_encoding()
        self._num_written = 0
        self._is_spent = False

    def encode(self, samples: Samples) -> bytes:
        """What can leave once these are here: float32 [num_samples], any number; maybe nothing yet.

        Raises:
            ValueError: it is finished or closed.
        """
        self._refuse_if_spent()
        if len(samples):
            self._write(self._reshaper.push(samples) if self._reshaper else samples)
        return self._file.sent()

    def finish(self) -> bytes:
        """The rest: what the filters, the codec and the container kept back.

        Raises:
            ValueError: it is finished or closed.
        """
        self._refuse_if_spent()
        if self._reshaper:
            self._write(self._reshaper.flush())
        self._container.mux(self._stream.encode(None))
        self.close()
        return self._file.rest()

    def close(self) -> None:
        """End it, finished or not; what was kept back is lost."""
        self._is_spent = True
        self._container.close()

    def __enter__(self) -> SoundEncoder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _refuse_if_spent(self) -> None:
        if self._is_spent:
            raise ValueError("this encoder is spent; every utterance wants its own")

    def _write(self, samples: Samples) -> None:
        if len(samples):
            numbers = to_int16(samples) if self._format.sample_format == "s16" else samples
            frame = audio_frame(numbers, self._format.sample_format, self._rate)
            frame.pts = self._num_written
            self._num_written += len(samples)
            self._container.mux(self._stream.encode(frame))


# The largest float32 below 2**31.
_INT32_TOP = np.nextafter(np.float32(2**31), np.float32(0))


def to_int16(samples: Samples) -> npt.NDArray[np.int16]:
    """The upper half of 32 bits: what libsndfile takes, so that the client's WAV and ours are the same."""
    wide = np.clip(samples * np.float32(2**31), -(2**31), _INT32_TOP)
    return (np.rint(wide).astype(np.int32) >> 16).astype(np.int16)


class _Pipe:
    """What cannot seek: the muxer neither waits for lengths nor comes back to write them."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def write(self, data: bytes) -> int:
        self._pieces.append(data)
        return len(data)

    def sent(self) -> bytes:
        pieces, self._pieces = self._pieces, []
        return b"".join(pieces)

    def rest(self) -> bytes:
        return self.sent()


class _Disk(io.BytesIO):
    """What can seek: nothing is final before the muxer has come back to write the lengths."""

    def sent(self) -> bytes:
        return b""

    def rest(self) -> bytes:
        return self.getvalue()
