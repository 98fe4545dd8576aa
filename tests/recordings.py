"""Recordings of a sine in every format that is accepted, made on the spot."""

from __future__ import annotations

import io
from functools import cache
from typing import Any

import av
import numpy as np
import soundfile
from numpy.typing import NDArray

TONE_HZ = 440.0
LEVEL = 0.5


def sine(seconds: float = 2.0, rate: int = 24_000, channels: int = 1) -> NDArray[np.float32]:
    """[frames, channels], the same in each."""
    time_s = np.arange(round(seconds * rate)) / rate
    tone = (LEVEL * np.sin(2 * np.pi * TONE_HZ * time_s)).astype(np.float32)
    return np.repeat(tone[:, None], channels, axis=1)


def humming(
    seconds: float = 2.0, rate: int = 24_000, channels: int = 1, seed: int = 0
) -> NDArray[np.float32]:
    """[frames, channels]: a gliding tone with overtones and breath, another one in each channel."""
    dice = np.random.default_rng(seed)
    time_s = np.arange(round(seconds * rate))[:, None] / rate
    pitches_hz = dice.uniform(90, 250, channels)
    phases = 2 * np.pi * pitches_hz * (time_s + 0.05 * np.sin(3 * time_s))
    tones = np.stack([np.sin(n * phases) / n for n in range(1, 6)]).sum(axis=0)
    breath = 0.1 * dice.standard_normal(tones.shape)
    return (0.25 * (tones + breath)).astype(np.float32)


def silence(seconds: float, rate: int = 24_000, channels: int = 1) -> NDArray[np.float32]:
    return np.zeros((round(seconds * rate), channels), np.float32)


def written(samples: NDArray[Any], rate: int = 24_000, form: str = "WAV", subtype: str = "PCM_16") -> bytes:
    """By libsndfile; a second at a time, because its Vorbis encoder overruns its stack on minutes at once."""
    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", rate, samples.shape[1], subtype, format=form) as output:
        for start in range(0, len(samples), rate):
            output.write(samples[start : start + rate])
    return file.getvalue()


def encoded(samples: NDArray[np.float32], rate: int, codec: str, container: str, **options: str) -> bytes:
    """By ffmpeg."""
    file = io.BytesIO()
    layout = {1: "mono", 2: "stereo", 6: "5.1"}[samples.shape[1]]
    with av.open(file, "w", format=container, options=options) as output:
        stream = output.add_stream(codec, rate=rate, layout=layout)
        whole = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples.T), format="fltp", layout=layout)
        whole.sample_rate = rate
        resampler = av.AudioResampler(stream.codec_context.format, layout, rate)
        fifo = av.AudioFifo()
        for frame in resampler.resample(whole):
            frame.pts = None
            fifo.write(frame)
        position = 0
        while (frame := fifo.read(stream.codec_context.frame_size or 1024, partial=True)) is not None:
            frame.pts = position
            position += frame.samples
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return file.getvalue()


@cache
def recording(kind: str, seconds: float = 2.0, rate: int = 24_000, channels: int = 1) -> bytes:
    """A sine as one of KINDS."""
    return as_kind(kind, sine(seconds, rate, channels), rate)


def as_kind(kind: str, samples: NDArray[np.float32], rate: int) -> bytes:
    form, *rest = KINDS[kind]
    if form == "ffmpeg":
        return encoded(samples, rate, *rest)
    return written(samples, rate, form, *rest)


# How a kind is written; and by whom, where both can.
KINDS = {
    "WAV, 8 bit": ("WAV", "PCM_U8"),
    "WAV, 16 bit": ("WAV", "PCM_16"),
    "WAV, 24 bit": ("WAV", "PCM_24"),
    "WAV, 32 bit": ("WAV", "PCM_32"),
    "WAV, float": ("WAV", "FLOAT"),
    "WAV, double": ("WAV", "DOUBLE"),
    "WAV, A-law": ("WAV", "ALAW"),
    "WAV, u-law": ("WAV", "ULAW"),
    "WAV, extensible": ("WAVEX", "PCM_16"),
    "FLAC, 16 bit": ("FLAC", "PCM_16"),
    "FLAC, 24 bit": ("FLAC", "PCM_24"),
    "Vorbis": ("OGG", "VORBIS"),
    "Opus": ("OGG", "OPUS"),
    "Opus by ffmpeg": ("ffmpeg", "libopus", "ogg"),
    "MP3": ("MP3", "MPEG_LAYER_III"),
    "MP3 by ffmpeg": ("ffmpeg", "mp3", "mp3"),
    "AAC": ("ffmpeg", "aac", "adts"),
    "M4A": ("ffmpeg", "aac", "ipod"),
    "M4A, lossless": ("ffmpeg", "alac", "ipod"),
}
