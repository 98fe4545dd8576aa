"""Samples out of one file: the header is checked before anything is decoded, and what comes is counted.

libsndfile reads WAV, FLAC, Vorbis and Opus, as it does for upstream; ffmpeg reads M4A and AAC, which
libsndfile does not know, and MP3, whose length libsndfile guesses where no tag declares it and then cuts the
recording there (on files with a tag the two agree to 2e-6). Neither gets to see a file name: ffmpeg's demuxer
is chosen here, its codecs are listed and its protocols are none.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import chain

import av
import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from qwen3_tts_engine.errors import InvalidRequest
from qwen3_tts_engine.reference_audio.complete import is_complete
from qwen3_tts_engine.reference_audio.kinds import Kind
from qwen3_tts_engine.reference_audio.limits import (
    MAX_PEAK,
    MAX_RATE,
    MAX_VALUES_PER_S,
    MIN_RATE,
    SAMPLE_RATE,
    SILENCE,
    Limits,
)

BLOCK_VALUES = 1 << 16  # decoded at once, all channels together
PROBE_BYTES = 1 << 16  # what ffmpeg may read before it knows what it has

# ADPCM and the like would be more code to expose than anyone has recordings in.
WAV_ENCODINGS = ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW")

DEMUXERS = {Kind.FLAC: "flac", Kind.MP3: "mp3", Kind.AAC: "aac", Kind.M4A: "mov"}
CODECS = {
    Kind.FLAC: ("flac",),
    Kind.MP3: ("mp3float", "mp3"),
    Kind.AAC: ("aac",),
    Kind.M4A: ("aac", "alac"),
}
FULL_SCALE = {"flt": 1.0, "fltp": 1.0, "s16": 2.0**15, "s16p": 2.0**15, "s32": 2.0**31, "s32p": 2.0**31}

Samples = NDArray[np.float32]


@dataclass(frozen=True)
class Stream:
    """A file that was opened, and nothing more.

    Args:
        rate: in Hz.
        channels: of every block.
        declared_s: the duration its header states; None where it states none that can be relied on.
        blocks: [frames, channels], decoded one by one as they are asked for.
    """

    rate: int
    channels: int
    declared_s: float | None
    blocks: Iterator[Samples]


def decode(kind: Kind, file: bytes, limits: Limits) -> tuple[Samples, float]:
    """Mono at 24 kHz, and the duration in seconds.

    Raises:
        InvalidRequest: for a file that is damaged, cut short, silent, or beyond the limits.
    """
    if not is_complete(kind, file):
        raise _cut_short(kind)
    longest_s = limits.max_seconds + kind.padding_s
    try:
        with OPENERS[kind](kind, file) as stream:
            _check_header(stream, kind, longest_s, limits)
            mono = _mono(stream, longest_s, limits)
    except (soundfile.SoundFileError, av.FFmpegError) as error:
        raise InvalidRequest(f"ref_audio is {kind}, but damaged: {_reason(error)}") from None
    duration_s = len(mono) / stream.rate
    if stream.declared_s is not None and duration_s + kind.padding_s < stream.declared_s:
        raise _cut_short(kind)
    if duration_s < limits.min_seconds:
        raise InvalidRequest(f"ref_audio lasts {duration_s:.3g} s; {limits.seconds}")
    _check_level(mono)
    return _resampled(mono, stream.rate), duration_s


def rehearse() -> None:
    """Make both libraries load now what they load at first use: later, there may be no files to open."""
    for kind in (Kind.WAV, Kind.MP3):
        file = io.BytesIO()
        soundfile.write(file, np.full(MAX_RATE // 10, 0.5, np.float32), 44_100, format=kind.value)
        decode(kind, file.getvalue(), Limits(min_seconds=0))


@contextmanager
def _with_soundfile(kind: Kind, file: bytes) -> Iterator[Stream]:
    with soundfile.SoundFile(io.BytesIO(file)) as sound:
        if kind is Kind.WAV and sound.subtype not in WAV_ENCODINGS:
            raise InvalidRequest(
                f"ref_audio is a WAV file of {sound.subtype_info};"
                " allowed in it are 8 to 32 bit PCM, float, A-law and µ-law"
            )
        yield Stream(sound.samplerate, sound.channels, sound.frames / sound.samplerate, _sound_blocks(sound))


def _sound_blocks(sound: soundfile.SoundFile) -> Iterator[Samples]:
    num_frames = max(1, BLOCK_VALUES // sound.channels)
    while len(block := sound.read(num_frames, dtype="float32", always_2d=True)):
        yield block


def _flac(kind: Kind, file: bytes) -> AbstractContextManager[Stream]:
    """Written to a pipe, it does not say how long it is, and libsndfile stumbles over its end.

    The number of samples is 36 bits of STREAMINFO, the first block (RFC 9639, 8.2).
    """
    is_known = file[21] & 0x0F or any(file[22:26]) if len(file) >= 26 else True
    return _with_soundfile(kind, file) if is_known else _with_ffmpeg(kind, file)


@contextmanager
def _with_ffmpeg(kind: Kind, file: bytes) -> Iterator[Stream]:
    options = {
        "codec_whitelist": ",".join(CODECS[kind]),
        "protocol_whitelist": "none",
        "probesize": str(PROBE_BYTES),
    }
    with av.open(
        io.BytesIO(file), format=DEMUXERS[kind], options=options, metadata_errors="replace"
    ) as container:
        audio = next(iter(container.streams.audio), None)
        if audio is None or audio.codec_context is None:
            raise InvalidRequest(f"ref_audio is {kind} without audio in it")
        if audio.codec_context.name not in CODECS[kind]:
            raise InvalidRequest(
                f"ref_audio is {kind} of {audio.codec_context.name};"
                f" allowed in it are {' and '.join(CODECS[kind])}"
            )
        audio.thread_type = "NONE"
        # MP3 and ADTS have no header to speak of; ffmpeg guesses from the first frame's bit rate.
        is_declared = kind is Kind.M4A and audio.duration is not None and audio.time_base is not None
        declared_s = float(audio.duration * audio.time_base) if is_declared else None
        frames = container.decode(audio)
        # The header's rate and channels are half the truth for HE-AAC; the first frame has all of it.
        first = next(frames, None)
        if first is None:
            raise _empty(kind)
        rate, channels = first.sample_rate, first.layout.nb_channels
        yield Stream(rate, channels, declared_s, _ffmpeg_blocks(chain([first], frames), rate, channels))


def _ffmpeg_blocks(frames: Iterator[av.AudioFrame], rate: int, channels: int) -> Iterator[Samples]:
    for frame in frames:
        if (frame.sample_rate, frame.layout.nb_channels) != (rate, channels):
            raise InvalidRequest(
                f"ref_audio changes from {rate} Hz and {channels} channels to"
                f" {frame.sample_rate} Hz and {frame.layout.nb_channels} on the way; it must stay what it is"
            )
        values = frame.to_ndarray()  # planar: [channels, frames]; else [1, frames * channels]
        block = values.T if frame.format.is_planar else values.reshape(-1, channels)
        yield np.ascontiguousarray(block, np.float32) / np.float32(FULL_SCALE[frame.format.name])


OPENERS: Mapping[Kind, Callable[[Kind, bytes], AbstractContextManager[Stream]]] = {
    Kind.WAV: _with_soundfile,
    Kind.FLAC: _flac,
    Kind.VORBIS: _with_soundfile,
    Kind.OPUS: _with_soundfile,
    Kind.MP3: _with_ffmpeg,
    Kind.AAC: _with_ffmpeg,
    Kind.M4A: _with_ffmpeg,
}


def _check_header(stream: Stream, kind: Kind, longest_s: float, limits: Limits) -> None:
    if not MIN_RATE <= stream.rate <= MAX_RATE:
        raise InvalidRequest(f"ref_audio has {stream.rate} Hz; {MIN_RATE} to {MAX_RATE} Hz are allowed")
    if stream.rate * stream.channels > MAX_VALUES_PER_S:
        raise InvalidRequest(
            f"ref_audio has {stream.channels} channels of {stream.rate} Hz;"
            f" channels times Hz may be {MAX_VALUES_PER_S} at most"
        )
    if stream.declared_s is not None and stream.declared_s > longest_s:
        raise InvalidRequest(f"ref_audio lasts {stream.declared_s:.3f} s by its header; {limits.seconds}")
    if stream.declared_s == 0:
        raise _empty(kind)


def _mono(stream: Stream, longest_s: float, limits: Limits) -> Samples:
    """The channels' mean, [frames]; only this is kept of a block."""
    room = int(longest_s * stream.rate)
    blocks: list[Samples] = [np.zeros(0, np.float32)]
    with np.errstate(all="ignore"):  # inf - inf is told to the caller, not to the log
        for block in stream.blocks:
            room -= len(block)
            if room < 0:
                raise InvalidRequest(f"ref_audio lasts more than {limits.max_seconds:g} s; {limits.seconds}")
            blocks.append(block.mean(axis=-1))
    return np.concatenate(blocks)


def _check_level(mono: Samples) -> None:
    peak = float(np.abs(mono).max(initial=0))
    if not np.isfinite(peak):
        raise InvalidRequest("ref_audio holds samples that are not finite numbers")
    if peak > MAX_PEAK:
        raise InvalidRequest(
            f"ref_audio has samples up to {peak:g}; full scale is 1, and up to {MAX_PEAK:g} are allowed"
        )
    if peak < SILENCE:
        raise InvalidRequest(f"ref_audio is silent (its peak is {peak:.2g} of full scale); a voice is needed")


def _resampled(mono: Samples, rate: int) -> Samples:
    """As librosa 0.11's `resample` with "soxr_hq", its default; the same samples, to the bit."""
    if rate == SAMPLE_RATE:
        return mono
    num_samples = int(np.ceil(len(mono) * (float(SAMPLE_RATE) / rate)))
    resampled = soxr.resample(mono, rate, SAMPLE_RATE, quality="soxr_hq")[:num_samples]
    return np.pad(resampled, (0, num_samples - len(resampled)))


def _reason(error: Exception) -> str:
    if isinstance(error, av.FFmpegError):
        return str(error.strerror)
    return str(getattr(error, "error_string", error)) or "its samples cannot be decoded"


def _cut_short(kind: Kind) -> InvalidRequest:
    return InvalidRequest(f"ref_audio is {kind} that was cut short; send all of it")


def _empty(kind: Kind) -> InvalidRequest:
    return InvalidRequest(f"ref_audio is {kind} without a single sample")
