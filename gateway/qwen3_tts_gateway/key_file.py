"""The JSON file of hashed keys that `qwen3-tts-gateway keys` writes and a running gateway reads:

{"keys": [{"name": "app", "scopes": ["synth"], "expires_at": null, "requests_per_minute": 60,
           "characters_per_minute": null, "max_streams": 2, "sha256": "9f86…",
           "created_at": "2026-01-02T03:04:05Z"}]}
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Literal, get_args

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    ValidationError,
    field_validator,
)

Scope = Literal["synth", "voices", "admin"]
SCOPES: frozenset[Scope] = frozenset(get_args(Scope))

Stamp = tuple[int, ...]

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
OPEN_TO = "anyone"  # what the gateway calls callers where it needs no key
API_KEYS_PREFIX = "env-"  # and the keys of API_KEYS

MARK = "qtts_"  # lets a secret scanner tell what leaked
SECRET_BYTES = 32


class KeyFileError(Exception):
    """The key file cannot be read or changed as asked; the message names it."""


class KeyTerms(BaseModel):
    """What a key is issued for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    scopes: tuple[Scope, ...] = Field(min_length=1)
    expires_at: AwareDatetime | None = None
    requests_per_minute: PositiveInt | None = None
    characters_per_minute: PositiveInt | None = None
    max_streams: PositiveInt | None = None

    @field_validator("name")
    @classmethod
    def _checked(cls, name: str) -> str:
        return checked_name(name)


class StoredKey(KeyTerms):
    """A key as the file has it: its hash, never the key itself."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    created_at: AwareDatetime


class _Contents(BaseModel):
    model_config = ConfigDict(extra="forbid")

    keys: tuple[StoredKey, ...]

    @field_validator("keys")
    @classmethod
    def _told_apart(cls, keys: tuple[StoredKey, ...]) -> tuple[StoredKey, ...]:
        names = [key.name for key in keys]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"two keys are called {twice!r}")
        return keys


class KeyFile:
    """Keys by name, in one file; every method but `stamp` raises KeyFileError."""

    def __init__(self, path: Path) -> None:
        self._path = path.resolve()  # a link is kept, and what it leads to is written

    def stamp(self) -> Stamp:
        """Another one than before if the file may have changed; empty if there is none."""
        try:
            stat = self._path.stat()
        except OSError:
            return ()
        return (stat.st_ino, stat.st_size, stat.st_mtime_ns)

    def read(self) -> tuple[StoredKey, ...]:
        try:
            return _Contents.model_validate_json(self._path.read_bytes()).keys
        except FileNotFoundError:
            remedy = "`qwen3-tts-gateway keys create NAME` makes one"
            raise KeyFileError(f"there is no key file {self._path}: {remedy}") from None
        except OSError as error:
            raise KeyFileError(f"the key file {self._path} cannot be read: {error.strerror}") from error
        except ValidationError as error:
            raise KeyFileError(f"the key file {self._path} is broken: {_first_of(error)}") from None

    def create(self, terms: KeyTerms, created_at: datetime) -> str:
        """Add a key, in a new file if there is none yet; the secret is returned, and kept nowhere."""
        secret = MARK + secrets.token_urlsafe(SECRET_BYTES)
        stored = StoredKey(**terms.model_dump(), sha256=hash_of(secret), created_at=created_at)
        with self._alone():
            keys = self.read() if self._path.exists() else ()
            if any(known.name == terms.name for known in keys):
                raise KeyFileError(
                    f"{self._path} has a key {terms.name!r}: revoke it first, or take another name"
                )
            self._write((*keys, stored))
        return secret

    def revoke(self, name: str) -> None:
        with self._alone():
            keys = self.read()
            kept = tuple(key for key in keys if key.name != name)
            if len(kept) == len(keys):
                names = ", ".join(key.name for key in keys) or "none at all"
                raise KeyFileError(f"{self._path} has no key {name!r}; it has {names}")
            self._write(kept)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Two who change the file at once would undo each other, and bring a revoked key back."""
        try:
            lock = (self._path.parent / f".{self._path.name}.lock").open("a")
        except OSError as error:
            raise KeyFileError(f"{self._path} cannot be written: {error.strerror}") from error
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _write(self, keys: tuple[StoredKey, ...]) -> None:
        """All of it or nothing, and for its owner's eyes only."""
        text = _Contents(keys=keys).model_dump_json(indent=2) + "\n"
        try:
            descriptor, draft = tempfile.mkstemp(
                dir=self._path.parent, prefix=f".{self._path.name}."
            )  # mode 0600
            try:
                with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                    self._keep_owner(descriptor)
                    file.write(text)
                    file.flush()
                    os.fsync(descriptor)
                Path(draft).replace(self._path)
            finally:
                Path(draft).unlink(missing_ok=True)
        except OSError as error:
            raise KeyFileError(f"{self._path} cannot be written: {error.strerror}") from error

    def _keep_owner(self, descriptor: int) -> None:
        """Root may issue a key, and the gateway, which runs as somebody else, must still read the file."""
        with suppress(FileNotFoundError, PermissionError):
            stat = self._path.stat()
            os.fchown(descriptor, stat.st_uid, stat.st_gid)


def hash_of(secret: str) -> str:
    # surrogatepass: what came over a socket may be no proper text, and is then merely unknown.
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def checked_name(name: str) -> str:
    if not NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name: 1 to 64 letters, digits, '.', '_' and '-' make one")
    if name == OPEN_TO or name.startswith(API_KEYS_PREFIX):
        raise ValueError(f"{name!r} is what the gateway calls somebody else; take another name")
    return name


def _first_of(error: ValidationError) -> str:
    """Where and what, without the value: it may be a hash."""
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"{where}: {first['msg'].removeprefix('Value error, ')}".removeprefix(": ")
