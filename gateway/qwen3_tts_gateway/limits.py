"""Each key's share of the machine: utterances at once, requests a minute and characters a minute.

A bucket holds one minute's share, and is refilled evenly. It is throttled-py's GCRA, which is a token bucket
in exact arithmetic: the library's own `token_bucket` rounds each refill down to whole tokens and forgets the
rest, so that of 10 requests a minute 6 are left to whoever asks every 5 seconds.

With LIMITS_STORE, several gateways share the buckets and the streams in one Redis, by the Redis's clock. A
Redis that fails takes no speech down: until it answers again, everybody is admitted, and the log says so once
a minute.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Protocol, cast

from redis.asyncio import Redis
from redis.exceptions import RedisError
from throttled.asyncio import MemoryStore, RedisStore, Throttled, per_min
from throttled.exceptions import StoreUnavailableError

from qwen3_tts_gateway.errors import InvalidInput, RateLimited
from qwen3_tts_gateway.keys import Key
from qwen3_tts_gateway.observing import LIMITS_STORE_FAILURES
from qwen3_tts_gateway.settings import Settings

log = logging.getLogger(__name__)

PREFIX = "qwen3_tts"  # of everything in the Redis, which may be others' too
STORE_PATIENCE_S = 0.5  # for an answer of the Redis: listeners wait meanwhile
STREAM_RETRY_S = 1.0  # nobody knows how long another utterance takes
LEASE_S = 30
ASK_AGAIN_S = 5.0
WARN_AGAIN_S = 60.0
# Two for each key. The library forgets the oldest at 1024, and a bucket forgotten is full.
MAX_BUCKETS = 1 << 16

STORE_FAILURES = (StoreUnavailableError, RedisError, OSError)


class Limits:
    """Admits or refuses, by each key's own limits or else the settings'; None is no limit.

    What is refused for its streams has spent nothing. Neither has what is refused for a bucket: all are
    looked at before any is drawn from. Only requests that come in the same instant can spend a request on
    characters that are gone.

    Args:
        clock: in seconds; for how often a Redis that fails is asked again, and complained about. The buckets
            have the library's clock, or the Redis's.

    Raises:
        ValueError: LIMITS_STORE is no Redis's URL.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._outage = Outage(clock)
        self._redis: Redis | None = None
        self._store: MemoryStore | RedisStore = MemoryStore(options={"MAX_SIZE": MAX_BUCKETS})
        self._streams: Streams = CountedStreams()
        if settings.limits_store:
            self._store = shared = _SharedStore.at(settings.limits_store)
            self._redis = shared.client()
            self._streams = LeasedStreams(self._redis, self._outage)
        self._buckets: dict[int, Throttled] = {}

    @asynccontextmanager
    async def admitted(
        self, key: Key, num_characters: int = 0, *, num_requests: int = 1
    ) -> AsyncIterator[None]:
        """Requests of so many characters have one of the key's streams, until the block ends.

        Raises:
            InvalidInput, RateLimited: as `admit`, and `stream`.
        """
        async with self.stream(key):
            await self.admit(key, num_characters, num_requests=num_requests)
            yield

    async def admit(self, key: Key, num_characters: int, *, num_requests: int = 1) -> None:
        """Spend so many requests, and characters of them all, of the key's.

        Raises:
            RateLimited: the key has to wait.
            InvalidInput: waiting would not help: it is more than what the key may use in a minute.
        """
        withdrawals = self._withdrawals(key, num_characters, num_requests)
        for withdrawal in withdrawals:
            withdrawal.must_fit()
        if self._outage.is_on:
            return
        with self._outage.noticed():
            for withdrawal in withdrawals:
                state = await self._bucket(withdrawal).peek(withdrawal.bucket)
                withdrawal.must_be_covered(withdrawal.wait_s(state.reset_after))
            for withdrawal in withdrawals:
                result = await self._bucket(withdrawal).limit(withdrawal.bucket, withdrawal.cost)
                withdrawal.must_be_covered(result.state.retry_after if result.limited else 0)

    def max_streams(self, key: Key) -> int | None:
        """How many streams the key may have at once; None: any number."""
        return key.max_streams or self._settings.max_streams

    @asynccontextmanager
    async def stream(self, key: Key) -> AsyncIterator[None]:
        """One of the key's streams, until the block ends; raises RateLimited if all are taken."""
        most = self.max_streams(key)
        if most is None:
            yield
            return
        async with self._streams.one_of(key.name, most):
            yield

    async def close(self) -> None:
        await self._streams.close()
        if self._redis is not None:
            await self._redis.connection_pool.aclose()

    def _withdrawals(self, key: Key, num_characters: int, num_requests: int) -> list[Withdrawal]:
        ours = self._settings
        costs = {
            "requests": (num_requests, key.requests_per_minute or ours.requests_per_minute),
            "characters": (num_characters, key.characters_per_minute or ours.characters_per_minute),
        }
        return [Withdrawal(key.name, of, cost, rate) for of, (cost, rate) in costs.items() if cost and rate]

    def _bucket(self, withdrawal: Withdrawal) -> Throttled:
        """Keys of the same limit share a Throttled, which itself keeps nothing."""
        rate = withdrawal.per_minute
        if rate not in self._buckets:
            self._buckets[rate] = Throttled(using="gcra", quota=per_min(rate), store=self._store)
        return self._buckets[rate]


@dataclass(frozen=True)
class Withdrawal:
    """What is taken from one of a key's buckets."""

    key_name: str
    of: str
    cost: int
    per_minute: int

    @property
    def bucket(self) -> str:
        return f"{PREFIX}:{self.of}:{self.key_name}"

    def wait_s(self, full_in_s: float) -> float:
        """How long until a bucket that is full in so many seconds covers the cost; below 0: it does."""
        return full_in_s - (self.per_minute - self.cost) * 60 / self.per_minute

    def must_fit(self) -> None:
        if self.cost > self.per_minute:
            raise InvalidInput(
                f"this takes {self.cost} {self.of}, and the key may use {self.per_minute} "
                "in a whole minute; send it in parts"
            )

    def must_be_covered(self, wait_s: float) -> None:
        if wait_s > 0:
            raise RateLimited(f"this key may use {self.per_minute} {self.of} a minute", retry_after_s=wait_s)


class Outage:
    """Tells when a store that failed is worth another try, and another warning."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._ask_from = self._warn_from = float("-inf")

    @property
    def is_on(self) -> bool:
        """The store failed just now: asking it again would only keep a listener waiting."""
        return self._clock() < self._ask_from

    @contextmanager
    def noticed(self) -> Iterator[None]:
        """A failure of the store within the block ends the block, and nothing else."""
        try:
            yield
        except STORE_FAILURES as error:
            LIMITS_STORE_FAILURES.inc()
            now = self._clock()
            self._ask_from = now + ASK_AGAIN_S
            if now >= self._warn_from:
                self._warn_from = now + WARN_AGAIN_S
                log.warning(
                    "LIMITS_STORE fails, so nobody is limited meanwhile: %s", error.__cause__ or error
                )


class Streams(Protocol):
    """Which keys have how many streams open."""

    def one_of(self, name: str, most: int) -> AbstractAsyncContextManager[None]:
        """One of at most so many of this name; raises RateLimited."""

    async def close(self) -> None: ...


class CountedStreams:
    """Those of this gateway alone."""

    def __init__(self) -> None:
        self._open: Counter[str] = Counter()

    @asynccontextmanager
    async def one_of(self, name: str, most: int) -> AsyncIterator[None]:
        if self._open[name] >= most:
            raise _all_taken(most)
        self._open[name] += 1
        try:
            yield
        finally:
            self._open[name] -= 1

    async def close(self) -> None: ...


# KEYS: the leases of one name, a sorted set of when each runs out. ARGV: the lease, how many there may be,
# for how many seconds. It renews, too: who has the lease keeps it; who lost it by being late may find room.
CLAIM = """
local now = tonumber(redis.call('TIME')[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
local is_new = not redis.call('ZSCORE', KEYS[1], ARGV[1])
if is_new and redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[2]) then return 0 end
redis.call('ZADD', KEYS[1], now + ARGV[3], ARGV[1])
redis.call('EXPIRE', KEYS[1], ARGV[3])
return 1
"""


class LeasedStreams:
    """Those of every gateway at one Redis. A gateway renews its leases; those of one that died run out."""

    def __init__(
        self, redis: Redis, outage: Outage, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    ) -> None:
        self._redis = redis
        self._claim_script = redis.register_script(CLAIM)
        self._outage = outage
        self._sleep = sleep
        self._releases: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def one_of(self, name: str, most: int) -> AsyncIterator[None]:
        leases, lease = f"{PREFIX}:streams:{name}", uuid.uuid4().hex
        if not await self._claim(leases, lease, most):
            raise _all_taken(most)
        renewing = asyncio.create_task(self._renew(leases, lease, most))
        try:
            yield
        finally:
            # In a task of its own: whoever hangs up cancels this one, and again wherever it waits.
            release = asyncio.create_task(self._release(leases, lease, renewing))
            self._releases.add(release)
            release.add_done_callback(self._releases.discard)
            await asyncio.shield(release)

    async def close(self) -> None:
        await asyncio.gather(*self._releases)

    async def _claim(self, leases: str, lease: str, most: int) -> bool:
        granted = True
        if not self._outage.is_on:
            with self._outage.noticed():
                granted = bool(await self._claim_script(keys=[leases], args=[lease, most, LEASE_S]))
        return granted

    async def _renew(self, leases: str, lease: str, most: int) -> None:
        while True:
            await self._sleep(LEASE_S / 3)
            await self._claim(leases, lease, most)

    async def _release(self, leases: str, lease: str, renewing: asyncio.Task[None]) -> None:
        renewing.cancel()  # and seen to its end, or it might claim what is released here
        await asyncio.wait([renewing])
        if not self._outage.is_on:  # else it runs out
            with self._outage.noticed():
                await self._redis.zrem(leases, lease)


class _SharedStore(RedisStore):
    """throttled-py's store, and the connections it uses."""

    @classmethod
    def at(cls, url: str) -> _SharedStore:
        patience = {"socket_timeout": STORE_PATIENCE_S, "socket_connect_timeout": STORE_PATIENCE_S}
        store = cls(url, {"CONNECTION_POOL_KWARGS": patience})
        try:
            store.client()  # connects to nothing yet
        except ValueError:  # whose message may quote the password
            raise ValueError("LIMITS_STORE is no URL of a Redis, such as redis://host:6379/0") from None
        return store

    def client(self) -> Redis:
        return cast(Redis, self._backend.get_client())


def _all_taken(most: int) -> RateLimited:
    return RateLimited(f"this key may have {most} streams at once", retry_after_s=STREAM_RETRY_S)
