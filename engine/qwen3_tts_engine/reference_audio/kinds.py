"""Which file this is, told by its first bytes, after base64 or a data: URL around it is undone."""

from __future__ import annotations

import base64
import binascii
from enum import Enum

from qwen3_tts_engine.errors import InvalidRequest

ACCEPTED = "WAV, FLAC, MP3, Ogg/Vorbis, Opus or M4A/AAC"
WRAPPED = f"the bytes of a {ACCEPTED} file, or base64 or a data: URL of one"

BASE64_SLACK = 4096  # a data: URL's head; line breaks are counted apart
LINE_BREAKS = b"\r\n"


class Kind(str, Enum):
    WAV = "WAV"
    FLAC = "FLAC"
    MP3 = "MP3"
    VORBIS = "Ogg/Vorbis"
    OPUS = "Opus"
    AAC = "AAC"
    M4A = "M4A"

    def __str__(self) -> str:
        """With its article, for messages."""
        return f"{'a' if self in (Kind.WAV, Kind.FLAC) else 'an'} {self.value} file"

    @property
    def padding_s(self) -> float:
        """How much silence an encoder may put around a recording undeclared; 30 s of sound stay 30 s."""
        return 0.25 if self in (Kind.MP3, Kind.AAC, Kind.M4A) else 0.0


# What else people send, for an answer that tells them.
OTHERS = {
    b"http://": "a URL, and URLs are not fetched here",
    b"https://": "a URL, and URLs are not fetched here",
    b"file:": "a URL, and URLs are not fetched here",
    b"RIFF": "a RIFF file, but no WAV",
    b"OggS": "an Ogg file of another codec",
    b"FORM": "an AIFF file",
    b".snd": "an AU file",
    b"caff": "a CAF file",
    b"RF64": "an RF64 file",
    b"\x1aE\xdf\xa3": "a WebM or Matroska file",
    b"0&\xb2u\x8ef\xcf\x11": "a WMA file",
    b"#!AMR": "an AMR file",
    b"MThd": "a MIDI file",
    b"#EXTM3U": "a playlist",
    b"PK\x03\x04": "a ZIP archive",
    b"\x1f\x8b": "a gzip archive",
    b"%PDF": "a PDF",
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"\x7fELF": "a program",
    b"<": "a page of markup",
    b"{": "JSON",
}


def unwrap(given: bytes, max_bytes: int) -> tuple[Kind, bytes]:
    """The file and its kind; an ID3 tag in front, which no decoder needs to see, is left out.

    Raises:
        InvalidRequest: for a file of another kind, one that is too big, or bad base64.
    """
    if len(given) > max_bytes + max_bytes // 3 + max_bytes // 32 + BASE64_SLACK:
        raise _too_big(len(given), max_bytes)
    file = given if kind_of(given) else _from_base64(given)
    if len(file) > max_bytes:
        raise _too_big(len(file), max_bytes)
    kind = kind_of(file)
    if kind is None:
        raise _unknown(file)
    return kind, file[id3_length(file) :]


def kind_of(file: bytes) -> Kind | None:
    start = id3_length(file)
    head = file[start : start + 64]
    if head.startswith(b"RIFF") and head[8:12] == b"WAVE":
        return Kind.WAV
    if head.startswith(b"fLaC"):
        return Kind.FLAC
    if head.startswith(b"OggS"):
        return _kind_in_ogg(head)
    if head[4:8] == b"ftyp":
        return Kind.M4A
    if is_adts_header(head):
        return Kind.AAC
    return Kind.MP3 if is_mp3_header(head) else None


def id3_length(file: bytes) -> int:
    """Bytes of the ID3v2 tag that a file begins with (id3.org, ID3v2.4 structure, 3.1)."""
    if not file.startswith(b"ID3") or len(file) < 10:
        return 0
    footer = 10 if file[5] & 0x10 else 0
    size = 0
    for byte in file[6:10]:
        size = size << 7 | byte & 0x7F
    return 10 + size + footer


def is_adts_header(head: bytes) -> bool:
    """Twelve bits of sync and layer 0 (ISO/IEC 13818-7, 6.2)."""
    return len(head) >= 7 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0


def is_mp3_header(head: bytes) -> bool:
    """Eleven bits of sync, layer III, and no version, bit rate or sample rate that is reserved."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE6 != 0xE2:
        return False
    version, bit_rate, rate = head[1] >> 3 & 3, head[2] >> 4, head[2] >> 2 & 3
    return version != 1 and bit_rate not in (0, 15) and rate != 3


def _kind_in_ogg(head: bytes) -> Kind | None:
    """By the first packet, which is alone on its page (RFC 3533, 6; RFC 7845, 3)."""
    packet = head[28:]
    if packet.startswith(b"\x01vorbis"):
        return Kind.VORBIS
    return Kind.OPUS if packet.startswith(b"OpusHead") else None


def _from_base64(given: bytes) -> bytes:
    text = given
    if given[:5].lower() == b"data:":
        head, _, text = given.partition(b",")
        if not head.lower().endswith(b";base64"):
            raise InvalidRequest("ref_audio is a data: URL without ;base64, which is the one way to send it")
    try:
        return base64.b64decode(text.translate(None, LINE_BREAKS), validate=True)
    except (binascii.Error, ValueError) as error:
        raise _unknown(given, f"and no base64 either ({error})") from None


def _unknown(file: bytes, besides: str = "") -> InvalidRequest:
    start = file.lstrip()[:16]
    known = next((name for magic, name in OTHERS.items() if start.lower().startswith(magic.lower())), None)
    if not file:
        known = "empty"
    elif file.startswith(b"ID3"):
        known = "a tag without audio behind it"
    elif known is None:
        known = " ".join(filter(None, [f"nothing known, beginning with {file[:8]!r}", besides]))
    return InvalidRequest(f"ref_audio is {known}; it must be {WRAPPED}")


def _too_big(num_bytes: int, max_bytes: int) -> InvalidRequest:
    return InvalidRequest(f"ref_audio has {num_bytes} bytes; {max_bytes} are allowed")
