"""Whether a file is all there, by the lengths it declares; decoders make do with half a file, silently.

A file that is broken in other ways counts as complete here: the decoder will say what is wrong with it.
"""

from __future__ import annotations

from qwen3_tts_engine.errors import InvalidRequest
from qwen3_tts_engine.reference_audio.kinds import Kind, is_adts_header, is_mp3_header

# A WAV written to a pipe has a length nobody could know: all ones (ffmpeg), or about 2 GiB (sox, arecord).
UNKNOWN_WAV_LENGTH = 0x7FFF_0000

LONGEST_MP3_FRAME = 1441  # bytes

MAX_PARTS = 10_000  # chunks or boxes of one file; nobody needs as many


def is_complete(kind: Kind, file: bytes) -> bool:
    """Raises InvalidRequest for one in more pieces than anybody needs."""
    if kind is Kind.WAV:
        return _wav_is_complete(file)
    if kind is Kind.M4A:
        return _mp4_is_complete(file)
    if kind in (Kind.VORBIS, Kind.OPUS):
        return _ogg_is_complete(file)
    if kind is Kind.AAC:
        return _adts_is_complete(file)
    if kind is Kind.MP3:
        return _mp3_is_complete(file)
    return True  # FLAC declares samples, and they are counted


def _wav_is_complete(file: bytes) -> bool:
    """RIFF: chunks of a name, a length and that many bytes, padded to an even number."""
    position = 12
    for _ in range(MAX_PARTS):
        if position + 8 > len(file):
            return False
        length = int.from_bytes(file[position + 4 : position + 8], "little")
        if file[position : position + 4] == b"data":
            return length >= UNKNOWN_WAV_LENGTH or position + 8 + length <= len(file)
        position += 8 + length + length % 2
    raise _in_pieces(Kind.WAV)


def _mp4_is_complete(file: bytes) -> bool:
    """Boxes of a length that counts its own bytes and a name (ISO/IEC 14496-12, 4.2)."""
    position, names = 0, set()
    for _ in range(MAX_PARTS):
        if position + 8 > len(file):
            return b"moov" in names
        length = int.from_bytes(file[position : position + 4], "big")
        names.add(file[position + 4 : position + 8])
        if length == 0:  # to the end of the file
            length = len(file) - position
        elif length == 1:
            length = int.from_bytes(file[position + 8 : position + 16], "big")
        if length < 8 or position + length > len(file):
            return False
        position += length
    raise _in_pieces(Kind.M4A)


def _ogg_is_complete(file: bytes) -> bool:
    """The last page holds what its table of segments says (RFC 3533, 6)."""
    page = file[file.rfind(b"OggS") :]
    if len(page) < 27 or len(page) < 27 + page[26]:
        return False
    return len(page) >= 27 + page[26] + sum(page[27 : 27 + page[26]])


def _adts_is_complete(file: bytes) -> bool:
    """Frame after frame, each with its length in 13 bits (ISO/IEC 13818-7, 6.2)."""
    position = 0
    while is_adts_header(header := file[position : position + 7]):
        length = (header[3] & 0x03) << 11 | header[4] << 3 | header[5] >> 5
        if length < 7:
            return True
        position += length
    return position <= len(file)


def _mp3_is_complete(file: bytes) -> bool:
    """As many bytes as the encoder's Xing or Info tag declares; without one, nothing is declared."""
    tag = max(file.find(b"Xing", 0, 64), file.find(b"Info", 0, 64))
    if not is_mp3_header(file) or tag < 0:
        return True
    if len(file) < tag + 8:  # the tag's name and its flags
        return False
    if not file[tag + 7] & 0x2:
        return True
    field = tag + 8 + (4 if file[tag + 7] & 0x1 else 0)
    declared = int.from_bytes(file[field : field + 4], "big")
    # Encoders disagree on whether the tag's own frame, the first, counts.
    second = file.find(file[:2], 4, LONGEST_MP3_FRAME)
    return declared <= len(file) + max(second, 0)


def _in_pieces(kind: Kind) -> InvalidRequest:
    return InvalidRequest(f"ref_audio is {kind} in more than {MAX_PARTS} pieces; a recording needs a handful")
