"""The formats an utterance can be had in, one row each: what FFmpeg is told, and what the caller is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

# Of mono speech. AAC has no more than 48 kbit/s to give at 8 kHz, and takes that.
MP3_BIT_RATE = 64_000
OPUS_BIT_RATE = 40_000
AAC_BIT_RATE = 64_000


@dataclass(frozen=True)
class Format:
    """How one format is written.

    Attributes:
        media_type: for Content-Type.
        extension: of a file, without the dot.
        codec: FFmpeg's name of the encoder.
        container: FFmpeg's name of the muxer.
        sample_format: what the encoder takes, by FFmpeg's name: 16-bit integers or float32.
        sample_rate: unless the caller asks for another.
        bit_rate: of a lossy codec that has a choice; 0 elsewhere.
        has_empty_file: whether decoders open a file without a sample; elsewhere b"" stands for it.
        codec_options: by FFmpeg's names.
        container_options: likewise.
        streamed_options: more of the container's, where the file is sent while it is made.
    """

    media_type: str
    extension: str
    codec: str
    container: str
    sample_format: Literal["s16", "flt", "fltp"] = "s16"
    sample_rate: int = 24_000
    bit_rate: int = 0
    has_empty_file: bool = False
    codec_options: Mapping[str, str] = field(default_factory=dict)
    container_options: Mapping[str, str] = field(default_factory=dict)
    streamed_options: Mapping[str, str] = field(default_factory=dict)


# Delays are what a decoder still lacks of the samples put in so far, at 24 kHz.
FORMATS: Mapping[str, Format] = {
    # 24 to 40 ms, besides 46 ms of silence in front that the encoder needs; a whole file announces them.
    # Frames are 24 ms, but 36 ms at 16 kHz and 72 ms at 8 kHz: there the second or third chunk brings sound.
    "mp3": Format(
        media_type="audio/mpeg",
        extension="mp3",
        codec="libmp3lame",
        container="mp3",
        sample_format="fltp",
        bit_rate=MP3_BIT_RATE,
        # Every frame stands by itself. Bits borrowed from earlier frames keep frames back: 50 ms more.
        codec_options={"reservoir": "0"},
        container_options={"id3v2_version": "0"},
    ),
    # 27 ms: a page is held back until the next one is full, and the encoder looks 6.5 ms ahead.
    "opus": Format(
        media_type="audio/ogg",
        extension="opus",
        codec="libopus",
        container="ogg",
        sample_format="flt",
        bit_rate=OPUS_BIT_RATE,
        # A page for each 20 ms packet costs 11 kbit/s; a whole file has pages of a second.
        streamed_options={"page_duration": "20000"},
    ),
    # 43 to 85 ms: frames of 1024 samples, each needing the next one, so that the first leaves with the second
    # chunk. The first is the encoder's own silence (43 ms), which ADTS has no field to announce.
    "aac": Format(
        media_type="audio/aac",
        extension="aac",
        codec="aac",
        container="adts",
        sample_format="fltp",
        bit_rate=AAC_BIT_RATE,
    ),
    # None for chunks of 80 ms: they are whole frames at every rate. Up to a frame (27 ms) for others.
    "flac": Format(
        media_type="audio/flac",
        extension="flac",
        codec="flac",
        container="flac",
        has_empty_file=True,
        codec_options={"frame_size": "640"},
        # FFmpeg would leave 8 KiB of room for tags in front of the first sample.
        container_options={"metadata_header_padding": "0"},
    ),
    # None. A stream's lengths are 0xFFFFFFFF: as long as it lasts.
    "wav": Format(
        media_type="audio/wav",
        extension="wav",
        codec="pcm_s16le",
        container="wav",
        has_empty_file=True,
        # No tags: the header is the 44 bytes that every reader knows.
        container_options={"fflags": "+bitexact"},
    ),
    "pcm": Format(media_type="audio/pcm", extension="pcm", codec="pcm_s16le", container="s16le"),
    # G.711, as telephones speak it (RFC 4856).
    "ulaw": Format(
        media_type="audio/PCMU", extension="ulaw", codec="pcm_mulaw", container="mulaw", sample_rate=8_000
    ),
    "alaw": Format(
        media_type="audio/PCMA", extension="alaw", codec="pcm_alaw", container="alaw", sample_rate=8_000
    ),
}
