"""Who may call: what a key may do, how a request presents one, and the ring that knows them all.

The key file holds hashes alone, so whoever reads it cannot call. A plain SHA-256 is enough: such a key is
32 random bytes, which no dictionary holds.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from qwen3_tts_gateway.errors import Unauthorized
from qwen3_tts_gateway.key_file import (
    API_KEYS_PREFIX,
    OPEN_TO,
    SCOPES,
    KeyFile,
    KeyFileError,
    Scope,
    Stamp,
    StoredKey,
    hash_of,
)
from qwen3_tts_gateway.settings import Settings

log = logging.getLogger(__name__)

OWNER_LENGTH = 12  # hex digits: two of a million names would meet with odds of 1 in 500
SCHEMES = ("bearer", "api-key")  # of the Authorization header


@dataclass(frozen=True)
class Key:
    """What the bearer of a key may do, and how much of it.

    Attributes:
        name: whose key it is; voices and limits go by it, so that a key issued anew has both again.
        expires_at: in UTC; None: never.
        requests_per_minute, characters_per_minute, max_streams: None: the settings' own.
    """

    name: str
    scopes: frozenset[Scope] = SCOPES
    expires_at: datetime | None = None
    requests_per_minute: int | None = None
    characters_per_minute: int | None = None
    max_streams: int | None = None

    @property
    def owner(self) -> str:
        """What the key's voices are kept under; empty where anyone may call, and voices are nobody's."""
        return "" if self.name == OPEN_TO else owner_of(self.name)

    def has_expired(self, now: datetime) -> bool:
        return self.expires_at is not None and self.expires_at <= now


ANYONE = Key(OPEN_TO)


class KeyRing:
    """Knows a key when it sees one: those of API_KEYS, which may do everything, and those of API_KEYS_FILE.

    The file is read anew when it changed, so that a key is issued or revoked without a restart. If that
    fails, the keys read before stay in force.

    Raises:
        KeyFileError: the file is missing or broken at the start.
        ValueError: a key of API_KEYS could never be sent.
    """

    def __init__(self, settings: Settings) -> None:
        self._fixed = _keys_in_the_clear(settings.api_keys)
        self._file = KeyFile(Path(settings.api_keys_file)) if settings.api_keys_file else None
        self._stamp: Stamp = self._file.stamp() if self._file else ()
        self._complained_about: Stamp | None = None
        self._filed = _by_hash(self._file.read()) if self._file else {}

    @property
    def is_open(self) -> bool:
        """No key is configured anywhere. An emptied key file lets nobody in, rather than everybody."""
        return not self._fixed and self._file is None

    def authenticate(self, presented: str | None, now: datetime) -> Key:
        """The key that was presented, or ANYONE where the gateway is open; raises Unauthorized."""
        if self.is_open:
            return ANYONE
        self._keep_up()
        if not presented:
            raise Unauthorized("an API key is needed: Authorization: Bearer <key>, or X-API-Key: <key>")
        key = self._find(presented)
        if key is None:
            raise Unauthorized("the API key is not known here, or no longer")
        if key.has_expired(now):
            raise Unauthorized("the API key has expired")
        return key

    def _find(self, presented: str) -> Key | None:
        """Compares with every key, and each in the same time: how long it takes tells nothing about them."""
        presented_hash = hash_of(presented)
        found = None
        for known_hash, key in (*self._fixed.items(), *self._filed.items()):
            if hmac.compare_digest(known_hash, presented_hash):
                found = key
        return found

    def _keep_up(self) -> None:
        if self._file is None or (stamp := self._file.stamp()) == self._stamp:
            return
        try:
            self._filed = _by_hash(self._file.read())
        except KeyFileError as error:
            if stamp != self._complained_about:  # once for each change, not for each request
                log.error("%s; the keys read before stay in force", error)
            self._stamp, self._complained_about = (), stamp  # whatever comes next is another file
        else:
            self._stamp, self._complained_about = stamp, None


def owner_of(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:OWNER_LENGTH]


def presented_key(headers: Mapping[str, str]) -> str | None:
    """The key in a request's headers (names in lower case, or a mapping that does not care).

    An empty one counts as none: a client without a key may send `Authorization: Bearer ` all the same.
    """
    scheme, _, credentials = headers.get("authorization", "").strip().partition(" ")
    authorized = credentials if scheme.lower() in SCHEMES else ""
    candidates = (headers.get("x-api-key", ""), authorized, headers.get("api-key", ""))
    return next((key for key in map(str.strip, candidates) if key), None)


def _by_hash(stored_keys: Iterable[StoredKey]) -> dict[str, Key]:
    return {
        stored.sha256: Key(
            stored.name,
            frozenset(stored.scopes),
            stored.expires_at,
            stored.requests_per_minute,
            stored.characters_per_minute,
            stored.max_streams,
        )
        for stored in stored_keys
    }


def _keys_in_the_clear(secrets: Iterable[str]) -> dict[str, Key]:
    """By hash, and called by it too, as they have no other name: another key has other voices."""
    keys = {}
    for number, secret in enumerate(secrets, 1):
        if not (secret.isascii() and secret.isprintable()) or " " in secret:
            raise ValueError(f"API_KEYS: key {number} has characters that a header cannot carry")
        digest = hash_of(secret)
        keys[digest] = Key(API_KEYS_PREFIX + digest[:8])
    return keys
