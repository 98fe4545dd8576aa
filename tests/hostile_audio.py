"""Inputs that nobody means well with, or that met with an accident: named, and the same every time."""

from __future__ import annotations

import base64
import gzip
import io
import struct
import zipfile
from collections.abc import Iterator

import numpy as np

from recordings import KINDS, recording, silence, sine, written

SEED = 20_240_229
VICTIMS = [name for name in KINDS if "by ffmpeg" not in name]
HOURS = 2 * 3600


def hostile_inputs() -> dict[str, bytes]:
    inputs: dict[str, bytes] = {}
    for make in (
        accidents,
        wav_headers,
        flac_headers,
        mp3_and_aac,
        mp4_boxes,
        bombs,
        other_things,
        wrappings,
    ):
        inputs.update(make())
    return inputs


def accidents() -> Iterator[tuple[str, bytes]]:
    """Cut, flipped, overwritten and glued files of every kind."""
    random = np.random.default_rng(SEED)
    for name in VICTIMS:
        file = recording(name, 1.5)
        for part in (0.01, 0.1, 0.5, 0.9, 0.99):
            yield f"{name}: the first {part:.0%}", file[: int(len(file) * part)]
        for i in range(3):
            yield f"{name}: bits flipped anywhere, {i}", mutated(file, random, 20)
            yield f"{name}: bits flipped in front, {i}", mutated(file, random, 4, within=200)
        middle = len(file) // 2
        yield f"{name}: a hole", file[:middle] + file[middle + 1000 :]
        yield f"{name}: noise inside", file[:middle] + random.bytes(2000) + file[middle:]
        yield f"{name}: zeros behind the head", file[:100].ljust(len(file), b"\0")
        yield f"{name}: the wrong magic", b"fLaC" + file[4:] if file[:4] != b"fLaC" else b"RIFF" + file[4:]


def mutated(file: bytes, random: np.random.Generator, num_bits: int, within: int | None = None) -> bytes:
    bits = np.frombuffer(file, np.uint8).copy()
    for position in random.integers(0, min(within or len(bits), len(bits)), num_bits):
        bits[position] ^= 1 << int(random.integers(8))
    return bits.tobytes()


def patched(file: bytes, position: int, content: bytes) -> bytes:
    return file[:position] + content + file[position + len(content) :]


def wav_headers() -> Iterator[tuple[str, bytes]]:
    file = recording("WAV, 16 bit", 1.5)
    for name, position, form, values in [
        ("format", 20, "<H", (0, 2, 0x11, 0x31, 0x55, 0xFFFE, 0xFFFF)),
        ("channels", 22, "<H", (0, 3, 1000, 65535)),
        ("rate", 24, "<I", (0, 1, 999, 400_000, 0x7FFFFFFF, 0xFFFFFFFF)),
        ("block alignment", 32, "<H", (0, 65535)),
        ("bits", 34, "<H", (0, 1, 7, 64, 65535)),
        ("format length", 16, "<I", (0, 1, 15, 0x7FFFFFFF, 0xFFFFFFFF)),
        ("data length", 40, "<I", (0, 1, 1 << 20, 0x7FFE0000, 0x7FFFFFFF, 0xFFFFFFFF)),
    ]:
        for value in values:
            yield f"WAV: {name} is {value}", patched(file, position, struct.pack(form, value))
    yield "WAV: a million empty chunks", file[:12] + b"junk\0\0\0\0" * 1_000_000
    for name, value in [("NaN", np.nan), ("inf", np.inf), ("-inf", -np.inf), ("huge", 1e30), ("loud", 32767)]:
        samples = sine(1.5)
        samples[1000] = value
        yield f"WAV: a sample that is {name}", written(samples, subtype="FLOAT")
    yield "WAV: doubles beyond float32", written(sine(1.5).astype(float) * 1e300, subtype="DOUBLE")
    both = np.concatenate([sine(1.5), sine(1.5)], axis=1)
    both[500] = (np.inf, -np.inf)
    yield "WAV: infinities that cancel", written(both, subtype="FLOAT")


def flac_headers() -> Iterator[tuple[str, bytes]]:
    """STREAMINFO, 18 bytes in: 20 bits rate, 3 channels, 5 bits a sample, 36 bits of samples."""
    file = recording("FLAC, 16 bit", 1.5)
    for name, rate, channels, bits, num_samples in [
        ("hours", 24_000, 1, 16, 24_000 * HOURS),
        ("the longest", 1, 1, 16, (1 << 36) - 1),
        ("no rate", 0, 1, 16, 36_000),
        ("the highest rate", 1_048_575, 8, 32, (1 << 36) - 1),
        ("an unknown length", 24_000, 1, 16, 0),
        ("eight channels", 24_000, 8, 16, 36_000),
        ("four bits", 24_000, 1, 4, 36_000),
    ]:
        packed = rate << 44 | (channels - 1) << 41 | (bits - 1) << 36 | num_samples
        yield f"FLAC: {name}", patched(file, 18, packed.to_bytes(8, "big"))
    yield "FLAC: a block of 16 MB that is not there", file[:42] + b"\x04\xff\xff\xff" + file[46:]
    yield "FLAC: a million empty blocks", file[:4] + b"\0" + file[5:42] + b"\x01\0\0\0" * 1_000_000


def mp3_and_aac() -> Iterator[tuple[str, bytes]]:
    mp3, aac = recording("MP3 by ffmpeg", 1.5), recording("AAC", 1.5)
    start = mp3.find(b"\xff\xf3")
    tag = max(mp3.find(b"Xing"), mp3.find(b"Info"))
    yield "MP3: frames beyond counting", patched(mp3, tag + 8, b"\xff\xff\xff\xff")
    yield "MP3: bytes beyond counting", patched(mp3, tag + 12, b"\xff\xff\xff\xff")
    yield "MP3: an ID3 tag of 256 MB", b"ID3\x04\0\0\x7f\x7f\x7f\x7f" + mp3[start:]
    yield "MP3: an ID3 tag and nothing else", b"ID3\x04\0\0\0\0\0\x10" + b"\0" * 16
    yield "MP3: tags in tags", b"ID3\x04\0\0\0\0\0\0" * 100_000 + mp3[start:]
    yield "MP3: heads only", b"\xff\xfb\x90\xc4" * 250_000
    yield "MP3: one frame", mp3[start : start + 200]
    yield "MP3: two rates", recording("MP3", 1.5, 24_000) + recording("MP3", 1.5, 44_100)
    yield "AAC: frames of nothing", b"\xff\xf1\x50\x80\x00\xff\xfc" * 150_000
    yield "AAC: frames of length 0", b"\xff\xf1\x50\x80\x00\x1f\xfc" * 150_000
    yield "AAC: two rates", aac + recording("AAC", 1.5, 44_100)
    yield "AAC: all 0xff", b"\xff" * 1_000_000


def mp4_boxes() -> Iterator[tuple[str, bytes]]:
    file = recording("M4A", 1.5)
    for box, offset, content in [
        ("stsz", 12, b"\x7f\xff\xff\xff"),
        ("stts", 8, b"\x7f\xff\xff\xff"),
        ("stts", 12, b"\xff\xff\xff\xff"),
        ("stsc", 8, b"\x7f\xff\xff\xff"),
        ("stco", 8, b"\x7f\xff\xff\xff"),
        ("stco", 12, b"\xff\xff\xff\xff"),
        ("mdhd", 16, b"\0\0\0\0"),
        ("mdhd", 16, b"\0\0\0\1"),
        ("mdhd", 20, b"\xff\xff\xff\xff"),
        ("mvhd", 16, b"\0\0\0\0"),
        ("mp4a", 20, b"\xff\xff"),
        ("mp4a", 28, b"\xff\xff\xff\xff"),
        ("elst", 12, b"\xff\xff\xff\xff"),
        ("esds", 8, b"\xff\xff\xff\xff"),
        ("mp4a", 0, b"alac"),
        ("mp4a", 0, b"twos"),
        ("moov", 0, b"free"),
        ("mdat", 0, b"free"),
        ("trak", 0, b"free"),
    ]:
        position = file.find(box.encode())
        assert position > 0, f"the victim has no {box} box"
        yield f"M4A: {box} + {offset} is {content!r}", patched(file, position + offset, content)
    for length in (0, 1, 7, 0xFFFFFFFF):
        position = file.find(b"moov") - 4
        yield f"M4A: a moov of {length} bytes", patched(file, position, struct.pack(">I", length))
    head = file[: file.find(b"moov") - 4]
    yield (
        "M4A: boxes in boxes",
        head + b"".join(struct.pack(">I4s", 8 * n, b"moov") for n in range(50_000, 0, -1)),
    )
    yield "M4A: a million boxes", head + b"\0\0\0\x08free" * 1_000_000
    reference = b"\0\0\0\x2aurl \0\0\0\0file:///etc/passwd\0"
    yield "M4A: samples in another file", file.replace(b"\0\0\0\x0curl \0\0\0\1", reference)


def bombs() -> Iterator[tuple[str, bytes]]:
    """Hours of silence, small."""
    yield "FLAC: hours of silence", written(silence(HOURS, 8_000), 8_000, "FLAC")
    flac = written(silence(600, 8_000, 8), 8_000, "FLAC")
    yield "FLAC: minutes in eight channels, no length", patched(flac, 21, b"\xf0\0\0\0\0")
    yield "Vorbis: minutes of silence", written(silence(300, 8_000), 8_000, "OGG", "VORBIS")
    yield "Opus: minutes of silence", written(silence(300, 8_000), 8_000, "OGG", "OPUS")
    mp3 = written(silence(10, 8_000), 8_000, "MP3", "MPEG_LAYER_III")
    yield "MP3: hours of silence", mp3 * (HOURS // 10)
    yield "AAC: hours of silence", recording("AAC", 10, 8_000) * (HOURS // 40)
    yield "WAV: hours of silence", written(silence(HOURS, 1_000), 1_000, "WAV", "PCM_U8")
    yield "WAV: more bytes than allowed", bytes(recording("WAV, 16 bit", 1.5)[:44]) + bytes(11 << 20)
    yield "silence", written(silence(2))
    yield "near silence", written(sine(2) * 1e-3)
    yield "too short", written(sine(0.5))
    yield "too long", written(sine(31))


def other_things() -> Iterator[tuple[str, bytes]]:
    random = np.random.default_rng(SEED)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("voice.wav", bytes(20_000_000))
    yield "ZIP", archive.getvalue()
    yield "gzip", gzip.compress(bytes(20_000_000))
    yield "gzip of a WAV", gzip.compress(recording("WAV, 16 bit", 1.5))
    for form in ("AIFF", "AU", "CAF", "RF64", "W64", "VOC", "IRCAM"):
        yield form, written(sine(1.5), form=form)
    yield "Speex", b"OggS\0\2" + bytes(20) + b"\1\x50Speex   1.2" + bytes(100)
    yield "WebM", b"\x1aE\xdf\xa3" + random.bytes(1000)
    yield "playlist", b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n"
    yield "concat script", b"ffconcat version 1.0\nfile /etc/passwd\n"
    yield "SDP", b"v=0\no=- 0 0 IN IP4 127.0.0.1\nm=audio 5004 RTP/AVP 0\n"
    for text in ("http://127.0.0.1/voice.wav", "HTTPS://example.com/a", "file:///etc/passwd", "/etc/passwd"):
        yield text, text.encode()
    yield "markup", b"<html><body>404</body></html>"
    yield "JSON", b'{"audio": ""}'
    yield "PNG", b"\x89PNG\r\n\x1a\n" + random.bytes(1000)
    yield "PDF", b"%PDF-1.7\n" + random.bytes(1000)
    yield "a program", b"\x7fELF" + random.bytes(1000)
    yield "raw PCM", (sine(1.5) * 32767).astype("<i2").tobytes()
    for size in (1, 2, 3, 4, 7, 11, 43, 1000, 1_000_000):
        yield f"{size} random bytes", random.bytes(size)
    yield "zeros", bytes(1_000_000)
    yield "a line break", b"\n"


def wrappings() -> Iterator[tuple[str, bytes]]:
    wav = recording("WAV, 16 bit", 1.5)
    text = base64.b64encode(wav)
    yield "base64: without its last character", text[:-1]
    yield "base64: too much padding", text + b"===="
    yield "base64: blanks", text.replace(b"A", b" A", 3)
    yield "base64: URL alphabet", text.replace(b"+", b"-").replace(b"/", b"_")
    yield "base64: twice", base64.b64encode(text)
    yield "base64: of half a file", base64.b64encode(wav[: len(wav) // 2])
    yield "base64: of a PDF", base64.b64encode(b"%PDF-1.7\n" + bytes(1000))
    yield "base64: of nothing", b"===="
    yield "base64: 14 MB of A", b"A" * (14 << 20)
    yield "base64: 13 MB of A", b"A" * (13 << 20)
    yield "base64: not ASCII", text[:100] + "é".encode() + text[100:]
    yield "data: without a comma", b"data:audio/wav;base64" + text
    yield "data: nothing", b"data:,"
    yield "data: empty base64", b"data:audio/wav;base64,"
    yield "data: percent-encoded", b"data:audio/wav,RIFF%00%00"
    yield "data: in data:", b"data:audio/wav;base64,data:audio/wav;base64," + text
