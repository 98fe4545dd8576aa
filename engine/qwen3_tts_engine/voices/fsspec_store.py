"""Voices in anything fsspec has a driver for: S3, Google Cloud Storage, Azure, …"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from qwen3_tts_engine.errors import ConfigError
from qwen3_tts_engine.voices.object_store import ObjectStore


def open_filesystem(url: str) -> ObjectStore:
    """The store below a URL, which nobody is asked about yet.

    Raises:
        ConfigError: for a scheme nobody knows, or whose driver is not installed.
    """
    import fsspec  # type: ignore[import-untyped]

    scheme = url.partition(":")[0]
    try:
        filesystem, root = fsspec.url_to_fs(url, use_listings_cache=False)
    except ImportError as error:
        raise ConfigError(f"VOICE_STORE is a {scheme} address, whose driver is missing: {error}") from error
    except ValueError as error:
        raise ConfigError(f"VOICE_STORE is a {scheme} address nobody can open: {error}") from error
    return ObjectStore(FilesystemBucket(filesystem, root))


class FilesystemBucket:
    """Objects that are put as a whole, which is what object stores do.

    Args:
        filesystem: an fsspec file system, its cache of listings off: another server may have saved a voice.
        root: the folder of the store in it.
    """

    def __init__(self, filesystem: Any, root: str) -> None:
        self._filesystem = filesystem
        self._root = root.rstrip("/")

    def read(self, path: str) -> bytes:
        data: bytes = self._filesystem.cat_file(self._place(path))
        return data

    def write(self, path: str, data: bytes) -> None:
        self._filesystem.pipe_file(self._place(path), data)

    def remove(self, path: str) -> None:
        self._filesystem.rm_file(self._place(path))

    def paths(self, folder: str, suffix: str = "") -> list[str]:
        self._filesystem.invalidate_cache()
        try:
            names = self._filesystem.ls(self._place(folder), detail=False)
        except FileNotFoundError:
            return []
        return [f"{folder}/{name.rpartition('/')[2]}" for name in names if name.endswith(suffix)]

    def exclusive(self) -> AbstractContextManager[None]:
        """Object stores have no locks. Of two writers of a name the last wins; an object is left over."""
        return nullcontext()

    def _place(self, path: str) -> str:
        return f"{self._root}/{path}"
