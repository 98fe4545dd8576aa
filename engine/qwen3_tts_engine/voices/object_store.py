"""Voices as files, or as objects of a bucket:

    objects/<SHA-256 of the whole object>.safetensors
    names/<SHA-256 of the name>.json                   the entry: which object the name stands for

The object is written first, then the entry is swapped: a crash in between leaves the old voice. No part of a
path is ever what a caller wrote.
"""

from __future__ import annotations

import builtins
import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from qwen3_tts_engine.errors import EngineFailed, NotFound
from qwen3_tts_engine.voices.format import (
    Entry,
    damaged,
    digest_of,
    not_found,
    read_entry,
    read_object,
    write_entry,
    write_object,
)
from qwen3_tts_engine.voices.names import check_name
from qwen3_tts_engine.voices.voice import Voice, VoiceSummary

logger = logging.getLogger(__name__)


class Bucket(Protocol):
    """Bytes under paths of the form `folder/name`. Every method may raise OSError."""

    def read(self, path: str) -> bytes:
        """Raise FileNotFoundError where there is nothing."""

    def write(self, path: str, data: bytes) -> None:
        """All or nothing, and durable on return."""

    def remove(self, path: str) -> None:
        """May, but need not, raise FileNotFoundError where there is nothing; S3 does not."""

    def paths(self, folder: str, suffix: str = "") -> list[str]:
        """Everything in a folder that ends like this; nothing where there is no such folder."""

    def exclusive(self) -> AbstractContextManager[None]:
        """One writer at a time, as far as this kind of bucket can tell."""


class ObjectStore:
    """A `VoiceStore` in a bucket."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket

    def save(self, voice: Voice) -> None:
        data = write_object(voice)
        digest = digest_of(data)
        with _failing(f"cannot write: voice {voice.name!r} was not saved"), self._bucket.exclusive():
            before = self._digest(voice.name)
            self._bucket.write(_object_path(digest), data)
            self._bucket.write(_entry_path(voice.name), write_entry(voice, digest))
            if before:  # another object, even of the same voice
                self._discard(before)

    def get(self, name: str) -> Voice:
        name = check_name(name)
        with _failing(f"cannot read voice {name!r}"):
            entry = self._entry(name)
            while True:
                try:
                    data = self._bucket.read(_object_path(entry.digest))
                except FileNotFoundError:
                    seen, entry = entry, self._entry(name)
                    if entry == seen:
                        raise damaged(name, "its object is missing") from None
                    continue  # it was saved anew between the two reads
                return read_object(name, entry.digest, data)

    def list(self) -> builtins.list[VoiceSummary]:
        with _failing("cannot be listed"):
            entries = [self._entry_at(path) for path in self._bucket.paths("names", ".json")]
        return sorted((entry.summary for entry in entries if entry), key=lambda summary: summary.name)

    def delete(self, name: str) -> None:
        name = check_name(name)
        with _failing(f"cannot write: voice {name!r} was not deleted"), self._bucket.exclusive():
            digest = self._digest(name)
            if digest is None:
                raise not_found(name)
            self._bucket.remove(_entry_path(name))
            if digest:
                self._discard(digest)

    def sweep(self) -> None:
        """Remove the objects that no name stands for: a killed save or delete leaves one.

        Only for a bucket whose `exclusive` keeps every other writer out; raises OSError where nothing can be
        written. Does nothing while an entry is damaged, since it may stand for any object.
        """
        with self._bucket.exclusive():
            entries = [self._entry_at(path) for path in self._bucket.paths("names", ".json")]
            if None in entries:
                return
            named = {_object_path(entry.digest) for entry in entries if entry}
            for path in set(self._bucket.paths("objects", ".safetensors")) - named:
                self._bucket.remove(path)

    def _entry(self, name: str) -> Entry:
        try:
            return read_entry(name, self._bucket.read(_entry_path(name)))
        except FileNotFoundError:
            raise not_found(name) from None

    def _entry_at(self, path: str) -> Entry | None:
        """None for an entry that is damaged, or that has just been deleted."""
        try:
            return read_entry(path, self._bucket.read(path))
        except FileNotFoundError:
            return None
        except EngineFailed as error:
            logger.error("%s", error)
            return None

    def _digest(self, name: str) -> str | None:
        """What a name stands for: None for nothing, empty where nobody can tell.

        Damage must keep no one from saving anew, or from deleting.
        """
        try:
            return self._entry(name).digest
        except NotFound:
            return None
        except EngineFailed:
            return ""

    def _discard(self, digest: str) -> None:
        """Remove an object that no name stands for any more; failing that, all else has happened."""
        try:
            self._bucket.remove(_object_path(digest))
        except OSError as error:
            logger.warning("object %s of a replaced or deleted voice stays: %s", digest, error)


def _object_path(digest: str) -> str:
    return f"objects/{digest}.safetensors"


def _entry_path(name: str) -> str:
    return f"names/{digest_of(name.encode())}.json"


@contextmanager
def _failing(what: str) -> Iterator[None]:
    """Say what did not happen; the log has the path."""
    try:
        yield
    except OSError as error:
        logger.error("the voice store %s: %s", what, error)
        raise EngineFailed(f"the voice store {what}: {error.strerror or error}") from error
