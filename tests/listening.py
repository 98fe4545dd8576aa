"""What a caller of the gateway does with the bytes that come: takes events apart, decodes audio."""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import dataclass
from typing import Any

import av
import numpy as np
import soundfile
from numpy.typing import NDArray

SAMPLE_RATE = 24_000

_EVENT = re.compile(r"event: (\S+)\ndata: (.*)")
_DEMUXERS = {"opus": "ogg", "pcm": "s16le"}  # FFmpeg's names, where they are not the format's own


@dataclass(frozen=True)
class Event:
    """One of the Server-Sent Events."""

    name: str
    data: str

    @property
    def json(self) -> Any:
        return json.loads(self.data)

    @property
    def audio(self) -> bytes:
        """Of a `speech.audio.delta`, or of the original API's `audio`."""
        encoded = self.json["audio"] if self.data.startswith("{") else self.data
        return base64.b64decode(encoded, validate=True)


def events_in(body: str) -> list[Event]:
    """All events of a body, each of two lines; anything else between them is an error."""
    *blocks, rest = body.split("\n\n")
    assert rest == "", "the last event is not ended by an empty line"
    matches = [_EVENT.fullmatch(block) for block in blocks]
    assert all(matches), "something is no event"
    return [Event(*match.groups()) for match in matches if match]


def decoded(data: bytes, form: str) -> NDArray[np.int16]:
    """The samples of a file, mono, 24 kHz, by FFmpeg."""
    options = {"sample_rate": str(SAMPLE_RATE)} if form == "pcm" else {}
    resampler = av.AudioResampler("s16", "mono", SAMPLE_RATE)
    with av.open(io.BytesIO(data), format=_DEMUXERS.get(form, form), options=options) as file:
        frames = [piece for frame in file.decode(audio=0) for piece in resampler.resample(frame)]
    arrays = [frame.to_ndarray()[0] for frame in [*frames, *resampler.resample(None)]]
    return np.concatenate([np.empty(0, np.int16), *arrays])


def samples_in(wav: bytes) -> NDArray[np.int16]:
    """The samples of a complete WAV file: 24 kHz, mono, 16 bit, of the length that its header says."""
    with soundfile.SoundFile(io.BytesIO(wav)) as file:
        assert (file.format, file.subtype, file.samplerate, file.channels) == (
            "WAV",
            "PCM_16",
            SAMPLE_RATE,
            1,
        )
        samples: NDArray[np.int16] = file.read(dtype="int16")
    assert len(wav) == 44 + 2 * len(samples)
    return samples
