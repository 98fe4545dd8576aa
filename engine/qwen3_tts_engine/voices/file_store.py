"""Voices in a directory of this machine, or of a network file system with locks."""

from __future__ import annotations

import fcntl
import logging
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from qwen3_tts_engine.errors import ConfigError
from qwen3_tts_engine.voices.object_store import ObjectStore

logger = logging.getLogger(__name__)


def open_directory(directory: Path) -> ObjectStore:
    """The store in a directory, which is made if need be. One that cannot be written can still be read.

    Raises:
        ConfigError: where there cannot be a directory.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"VOICE_STORE leads to {directory}, which cannot be a directory: {error.strerror}"
        ) from error
    bucket = DirectoryBucket(directory)
    store = ObjectStore(bucket)
    with suppress(OSError):  # read-only: there is nothing to be done, and voices can be read
        bucket.sweep()
        store.sweep()
    return store


class DirectoryBucket:
    """Files that are there as a whole or not at all, even after a power failure."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def read(self, path: str) -> bytes:
        return (self._directory / path).read_bytes()

    def write(self, path: str, data: bytes) -> None:
        target = self._directory / path
        unfinished = self._directory / "unfinished" / uuid.uuid4().hex
        for folder in (target.parent, unfinished.parent):
            self._make(folder)
        try:
            _write_durably(unfinished, data)
            unfinished.replace(target)
        finally:
            unfinished.unlink(missing_ok=True)
        _sync(target.parent)

    def remove(self, path: str) -> None:
        target = self._directory / path
        target.unlink()
        _sync(target.parent)

    def paths(self, folder: str, suffix: str = "") -> list[str]:
        with suppress(FileNotFoundError):
            files = (self._directory / folder).iterdir()
            return [f"{folder}/{file.name}" for file in files if file.name.endswith(suffix)]
        return []

    def _make(self, folder: Path) -> None:
        if not folder.is_dir():
            folder.mkdir(exist_ok=True)
            _sync(self._directory)

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """The kernel lets go of the lock of a process that was killed."""
        with (self._directory / "lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def sweep(self) -> None:
        """Remove what a killed writer left half written."""
        with self.exclusive():
            for path in self.paths("unfinished"):
                self.remove(path)


def _write_durably(file: Path, data: bytes) -> None:
    with file.open("xb") as handle:
        handle.write(data)
        handle.flush()
        os.fsync(handle.fileno())


def _sync(directory: Path) -> None:
    """A new name in a directory is durable once the directory is."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
