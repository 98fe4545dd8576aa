"""Voices in a Redis, in two hashes whose fields are the names: entries, and objects."""

from __future__ import annotations

import builtins
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import redis

from qwen3_tts_engine.errors import ConfigError, EngineFailed
from qwen3_tts_engine.voices.format import (
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

# The braces keep both on one node of a cluster, where alone a transaction can span them.
ENTRIES, OBJECTS = "{qwen3_tts:voices}:entries", "{qwen3_tts:voices}:objects"
TIMEOUT_S = 5


class RedisStore:
    """A `VoiceStore` in a Redis. Each operation is one transaction: nobody ever sees half of one."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client

    @classmethod
    def open(cls, url: str) -> RedisStore:
        """The store at a URL, whose server is not asked for yet: it may start later than this one.

        Raises:
            ConfigError: for an address redis-py cannot read.
        """
        try:
            return cls(redis.Redis.from_url(url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S))
        except (ValueError, TypeError) as error:
            raise ConfigError(f"VOICE_STORE is no address of a Redis: {error}") from error

    def save(self, voice: Voice) -> None:
        data = write_object(voice)
        with self._transaction() as transaction:
            transaction.hset(OBJECTS, voice.name, data)
            transaction.hset(ENTRIES, voice.name, write_entry(voice, digest_of(data)))
            transaction.execute()

    def get(self, name: str) -> Voice:
        name = check_name(name)
        with self._transaction() as transaction:
            transaction.hget(ENTRIES, name)
            transaction.hget(OBJECTS, name)
            entry, data = transaction.execute()
        if entry is None:
            raise not_found(name)
        if data is None:
            raise damaged(name, "its object is missing")
        return read_object(name, read_entry(name, entry).digest, data)

    def list(self) -> builtins.list[VoiceSummary]:
        with self._transaction() as transaction:
            transaction.hgetall(ENTRIES)
            (entries,) = transaction.execute()
        return list(_readable(sorted(entries.items())))

    def delete(self, name: str) -> None:
        name = check_name(name)
        with self._transaction() as transaction:
            transaction.hdel(ENTRIES, name)
            transaction.hdel(OBJECTS, name)
            num_entries, _ = transaction.execute()
        if not num_entries:
            raise not_found(name)

    @contextmanager
    def _transaction(self) -> Iterator[Any]:
        try:
            with self._client.pipeline(transaction=True) as transaction:
                yield transaction
        except redis.RedisError as error:
            logger.error("the Redis of the voice store failed: %s", error)
            raise EngineFailed(f"the voice store cannot be used: {error}") from error


def _readable(entries: builtins.list[tuple[bytes, bytes]]) -> Iterator[VoiceSummary]:
    for name, data in entries:
        try:
            yield read_entry(name.decode(errors="replace"), data).summary
        except EngineFailed as error:
            logger.error("%s", error)
