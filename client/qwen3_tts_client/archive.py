"""Saved voices in one file, to keep elsewhere: what `voices export` writes and `voices import` reads.

A zip whose names are numbers; nothing of it is ever unpacked to disk, and nothing unpickled:

    0.safetensors   speaker_embedding F32 [D]; ref_codes I32 [frames, 16], absent if x-vector only
    0.json          what `describe` says of it: name, created_at, model, x_vector_only, ref_text, metadata
    1.safetensors, 1.json, …
    manifest.json   version, and for each voice, in that order, its name and the SHA-256 of both its files

The manifest is written last: an archive without it was never finished.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors import numpy as safetensors

from qwen3_tts_client.errors import InvalidRequest
from qwen3_tts_client.voice import VoicePrompt

VERSION = 1
MANIFEST = "manifest.json"
WAYS_TO_COMPRESS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)

# Far above what a voice takes (750 frames are 48 kB); what claims more is not read into memory.
MAX_FILE_BYTES = 1 << 20
MAX_MANIFEST_BYTES = 256 << 20  # a million voices

# What reading bytes that are not ours can raise.
_UNREADABLE = (
    zipfile.BadZipFile,
    zlib.error,
    SafetensorError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    EOFError,
    RuntimeError,  # encrypted, compressed in a way nobody knows, nested too deeply
)


@dataclass(frozen=True)
class SavedVoice:
    """A voice that the server keeps under a name.

    Attributes:
        name: what to speak with: `voice="grandpa"`.
        created_at: when it was saved.
        model: the checkpoint that heard it, the only kind that can speak with it.
        x_vector_only: it is no more than a speaker embedding.
        ref_text: the transcript of its recording; empty if x-vector only.
        metadata: whatever was saved along with it.
    """

    name: str
    created_at: str
    model: str
    x_vector_only: bool
    ref_text: str
    metadata: dict[str, Any]


_TYPES = {
    "name": str,
    "created_at": str,
    "model": str,
    "x_vector_only": bool,
    "ref_text": str,
    "metadata": dict,
}


@dataclass(frozen=True)
class ArchivedVoice:
    """All there is of a voice."""

    about: SavedVoice
    prompt: VoicePrompt


@contextmanager
def writing_archive(path: Path) -> Iterator[ArchiveWriter]:
    """An archive that is at `path`, for its owner only, once the block has ended well, and not before."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        unfinished = Path(file.name)
        try:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
                writer = ArchiveWriter(archive)
                yield writer
                writer.finish()
            file.flush()
            os.fsync(file.fileno())
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)


class ArchiveWriter:
    """Voices, one after the other: none stays in memory."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self._manifest: dict[str, dict[str, str]] = {}  # by name

    @property
    def names(self) -> list[str]:
        return list(self._manifest)

    def add(self, voice: ArchivedVoice) -> None:
        if voice.about.name in self._manifest:  # asked for twice
            return
        files = {
            "safetensors": _write_tensors(voice.prompt),
            "json": json.dumps(asdict(voice.about), ensure_ascii=False, indent=2).encode(),
        }
        number = len(self._manifest)
        for extension, content in files.items():
            self._archive.writestr(f"{number}.{extension}", content)
        digests = {extension: _sha256(content) for extension, content in files.items()}
        self._manifest[voice.about.name] = {"name": voice.about.name, **digests}

    def finish(self) -> None:
        manifest = {"version": VERSION, "voices": list(self._manifest.values())}
        self._archive.writestr(MANIFEST, json.dumps(manifest, ensure_ascii=False, indent=2))


@contextmanager
def reading_archive(path: Path) -> Iterator[ArchiveReader]:
    """The archive at `path`, every voice of it checked.

    Raises:
        InvalidRequest: it is none, or has been changed since it was written.
        OSError: it cannot be read.
    """
    with _blaming(path, "its list of files"):
        archive = zipfile.ZipFile(path)
    with archive:
        reader = ArchiveReader(path, archive)
        for _ in reader.voices():
            pass
        yield reader


class ArchiveReader:
    """The voices of an archive, each read anew and checked whenever it is asked for."""

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self._path = path
        self._archive = archive
        with _blaming(path, MANIFEST):
            manifest = json.loads(self._read(MANIFEST, MAX_MANIFEST_BYTES))
            if manifest["version"] != VERSION:
                raise ValueError(f"its version is {manifest['version']!r}; this client reads {VERSION}")
            self._entries: list[dict[str, str]] = list(manifest["voices"])
            self.names = [entry["name"] for entry in self._entries]
            self._check_members()

    def voices(self) -> Iterator[ArchivedVoice]:
        for number, entry in enumerate(self._entries):
            with _blaming(self._path, f"voice {entry['name']!r}"):
                voice = self._voice(number, entry)
            yield voice

    def _check_members(self) -> None:
        if len(set(self.names)) < len(self.names):
            raise ValueError("it names a voice twice")
        expected = [
            f"{number}.{kind}" for number in range(len(self.names)) for kind in ("safetensors", "json")
        ]
        if sorted(self._archive.namelist()) != sorted([*expected, MANIFEST]):
            raise ValueError(f"the archive's files are not those of its {len(self.names)} voices")

    def _voice(self, number: int, entry: dict[str, str]) -> ArchivedVoice:
        files = {kind: self._read(f"{number}.{kind}", MAX_FILE_BYTES) for kind in ("safetensors", "json")}
        for kind, content in files.items():
            if _sha256(content) != entry[kind]:
                raise ValueError(f"its {kind} is not what was written")
        about = json.loads(files["json"])
        if {key: type(value) for key, value in about.items()} != _TYPES:
            raise ValueError(f"its description has the fields {', '.join(about)}")
        if about["name"] != entry["name"]:
            raise ValueError(f"its description is of {about['name']!r}")
        saved = SavedVoice(**about)
        prompt = _read_tensors(files["safetensors"], saved.ref_text)
        if bool(len(prompt.ref_codes)) == saved.x_vector_only:
            raise ValueError("its description and its tensors disagree about reference frames")
        return ArchivedVoice(saved, prompt)

    def _read(self, name: str, most_bytes: int) -> bytes:
        if self._archive.getinfo(name).compress_type not in WAYS_TO_COMPRESS:
            raise ValueError(f"{name} is compressed in another way than ours")
        with self._archive.open(name) as file:
            content = file.read(most_bytes + 1)  # whatever size its header tells
        if len(content) > most_bytes:
            raise ValueError(f"{name} has more than {most_bytes} bytes")
        return content


@contextmanager
def _blaming(path: Path, part: str) -> Iterator[None]:
    """Raises InvalidRequest where what is read cannot have been written so."""
    try:
        yield
    except (*_UNREADABLE, OSError) as error:
        # A file that tells of a place before its own beginning is damaged as well.
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        raise InvalidRequest(f"{path} is no archive of voices that can be read: {part}: {error}") from error


def _write_tensors(prompt: VoicePrompt) -> bytes:
    tensors: dict[str, Any] = {"speaker_embedding": np.ascontiguousarray(prompt.speaker_embedding)}
    if len(prompt.ref_codes):
        tensors["ref_codes"] = np.ascontiguousarray(prompt.ref_codes)
    return bytes(safetensors.save(tensors))


def _read_tensors(content: bytes, ref_text: str) -> VoicePrompt:
    tensors = safetensors.load(content)
    embedding = tensors.pop("speaker_embedding")
    codes = tensors.pop("ref_codes", np.zeros((0, 16), np.int32))
    if tensors:
        raise ValueError(f"it has a tensor {next(iter(tensors))!r}, which no voice has")
    if (embedding.dtype, embedding.ndim) != (np.float32, 1):
        raise ValueError(f"speaker_embedding is {embedding.dtype} of shape {list(embedding.shape)}")
    if codes.dtype != np.int32 or codes.shape[1:] != (16,):
        raise ValueError(f"ref_codes is {codes.dtype} of shape {list(codes.shape)}")
    return VoicePrompt(embedding, codes, ref_text)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
