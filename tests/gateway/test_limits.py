"""Each key gets its share: of this gateway, or of several that share a Redis."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import pytest
import redis

from qwen3_tts_engine.launch.ports import free_ports
from qwen3_tts_gateway import limits as limits_module
from qwen3_tts_gateway.errors import InvalidInput, RateLimited
from qwen3_tts_gateway.keys import ANYONE, Key
from qwen3_tts_gateway.limits import LEASE_S, LeasedStreams, Limits, Outage, Withdrawal
from qwen3_tts_gateway.settings import Settings
from redis_server import running_redis

APP = Key("app")
STREAMS = "qwen3_tts:streams:app"
PATIENCE_S = 10


class HandClock:
    """Shows what it is set to."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch) -> HandClock:
    """The gateway's clock, and the library's."""
    clock = HandClock()
    monkeypatch.setattr("throttled.utils.now_mono_f", clock)
    return clock


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    """A Redis on a busy machine is slow, not silent."""
    monkeypatch.setattr(limits_module, "STORE_PATIENCE_S", PATIENCE_S)


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_redis(tmp_path_factory.mktemp("redis"), free_ports()[0]) as url:
        yield url


@pytest.fixture
def redis_client(redis_server: str) -> Iterator[redis.Redis]:
    """Of a Redis in which nothing is."""
    with redis.Redis.from_url(redis_server) as client:
        client.flushall()
        yield client


@asynccontextmanager
async def limiting(clock=time.monotonic, **settings):
    limits = Limits(Settings(_env_file=None, **settings), clock)
    try:
        yield limits
    finally:
        await limits.close()


async def refusal(limits: Limits, key: Key = APP, num_characters: int = 1) -> RateLimited:
    with pytest.raises(RateLimited) as error:
        await limits.admit(key, num_characters)
    return error.value


async def admitted(limits: Limits, key: Key = APP, num_characters: int = 1) -> int:
    """How many such requests in a row."""
    count = 0
    with suppress(RateLimited):
        while count < 100:
            await limits.admit(key, num_characters)
            count += 1
    return count


async def test_without_a_limit_everything_is_admitted(clock):
    async with limiting(clock) as limits, AsyncExitStack() as streams:
        assert await admitted(limits, num_characters=10**9) == 100
        for _ in range(100):
            await streams.enter_async_context(limits.stream(APP))


async def test_a_minutes_requests_may_come_at_once_and_then_one_at_a_time(clock):
    async with limiting(clock, requests_per_minute=60) as limits:
        assert await admitted(limits) == 60
        error = await refusal(limits)
        assert (str(error), error.retry_after_s) == ("this key may use 60 requests a minute", 1)
        clock.now_s += error.retry_after_s
        assert await admitted(limits) == 1
        clock.now_s += 3600
        assert await admitted(limits) == 60


async def test_who_asks_faster_than_allowed_still_gets_the_whole_share(clock):
    """throttled-py's `token_bucket` would give 6 a minute."""
    async with limiting(clock, requests_per_minute=10) as limits:
        await admitted(limits)
        count = 0
        for _ in range(120):  # ten minutes of a request every 5 s
            clock.now_s += 5
            with suppress(RateLimited):
                await limits.admit(APP, 1)
                count += 1
        assert count == 100


async def test_characters_are_counted_and_the_wait_is_for_this_text(clock):
    async with limiting(clock, characters_per_minute=60) as limits:
        await limits.admit(APP, 40)
        error = await refusal(limits, num_characters=30)
        assert (str(error), error.retry_after_s) == ("this key may use 60 characters a minute", 10)
        await limits.admit(APP, 20)
        clock.now_s += 30
        await limits.admit(APP, 30)


async def test_a_text_that_no_wait_makes_room_for_is_refused_for_good(clock):
    async with limiting(clock, requests_per_minute=1, characters_per_minute=60) as limits:
        with pytest.raises(
            InvalidInput, match="this takes 61 characters, and the key may use 60 in a whole minute"
        ):
            await limits.admit(APP, 61)
        await limits.admit(APP, 60)


async def test_several_requests_are_admitted_together_or_not_at_all(clock):
    async with limiting(clock, requests_per_minute=6) as limits:
        with pytest.raises(InvalidInput, match="this takes 7 requests, and the key may use 6 in a whole min"):
            await limits.admit(APP, 7, num_requests=7)
        await limits.admit(APP, 4, num_requests=4)
        with pytest.raises(RateLimited) as error:
            await limits.admit(APP, 3, num_requests=3)
        assert error.value.retry_after_s == 10
        assert await admitted(limits) == 2


async def test_what_is_refused_for_one_bucket_spends_nothing_of_the_other(clock):
    async with limiting(clock, requests_per_minute=2, characters_per_minute=60) as limits:
        await limits.admit(APP, 60)
        for _ in range(5):
            assert "characters" in str(await refusal(limits, num_characters=30))
        clock.now_s += 29  # not yet another request, and 29 characters
        await limits.admit(APP, 29)
        for _ in range(5):
            assert "requests" in str(await refusal(limits, num_characters=0))
        clock.now_s += 1
        await limits.admit(APP, 1)


async def test_a_keys_own_limits_win_over_the_settings(clock):
    own = Key("own", requests_per_minute=3, characters_per_minute=30, max_streams=1)
    settings = {"requests_per_minute": 60, "characters_per_minute": 600, "max_streams": 2}
    async with limiting(clock, **settings) as limits:
        assert await admitted(limits, own) == 3
        with pytest.raises(InvalidInput):
            await limits.admit(own, 31)
        assert await admitted(limits, APP) == 60
        async with limits.stream(own):
            with pytest.raises(RateLimited, match="1 streams"):
                await limits.stream(own).__aenter__()
        async with limits.stream(APP), limits.stream(APP):
            pass


async def test_keys_are_limited_each_for_itself_and_callers_without_one_together(clock):
    async with limiting(clock, requests_per_minute=5) as limits:
        assert await admitted(limits, APP) == 5
        assert await admitted(limits, Key("other")) == 5
        assert await admitted(limits, ANYONE) == 5
        assert await admitted(limits, ANYONE) == 0


@pytest.mark.parametrize("cost", [1, 59, 60])
def test_a_full_bucket_covers_what_it_holds(cost):
    assert Withdrawal("app", "characters", cost, 60).wait_s(full_in_s=0) <= 0


@pytest.fixture(params=["memory", "redis"])
def store(request) -> dict[str, str]:
    """Settings, of each kind of store."""
    if request.param == "memory":
        return {}
    request.getfixturevalue("redis_client")
    return {"limits_store": request.getfixturevalue("redis_server")}


async def test_one_stream_more_than_allowed_is_refused_until_one_ends(store):
    async with limiting(max_streams=2, **store) as limits, limits.stream(APP):
        async with limits.stream(APP):
            with pytest.raises(RateLimited, match="this key may have 2 streams at once") as error:
                await limits.stream(APP).__aenter__()
            assert error.value.retry_after_s == 1
            async with limits.stream(Key("other")):
                pass
        async with limits.stream(APP):
            pass


async def test_a_stream_that_breaks_gives_its_place_back_and_its_error_on(store):
    async with limiting(max_streams=1, **store) as limits:
        for error in (OSError("the listener is gone"), redis.RedisError("somebody's own")):
            with pytest.raises(type(error), match=str(error)):
                async with limits.stream(APP):
                    raise error
        async with limits.stream(APP):
            pass


async def test_a_stream_that_is_cancelled_gives_its_place_back(store):
    async with limiting(max_streams=1, **store) as limits:
        speaking = asyncio.Event()

        async def speak():
            async with limits.stream(APP):
                speaking.set()
                await asyncio.Event().wait()

        listener = asyncio.create_task(speak())
        await speaking.wait()
        listener.cancel()
        with pytest.raises(asyncio.CancelledError):
            await listener
        async with limits.stream(APP):
            pass


async def test_whoever_hangs_up_twice_still_gives_the_place_back(redis_client, redis_server):
    async with limiting(max_streams=1, limits_store=redis_server) as limits:
        leaving = asyncio.Event()

        async def speak():
            async with limits.stream(APP):
                leaving.set()

        listener = asyncio.create_task(speak())
        await leaving.wait()
        listener.cancel()  # while it waits for the release
        with pytest.raises(asyncio.CancelledError):
            await listener
    assert redis_client.zcard(STREAMS) == 0  # close() saw the release to its end


async def test_gateways_at_one_redis_share_the_buckets_and_the_streams(redis_client, redis_server):
    settings = {"requests_per_minute": 2, "characters_per_minute": 60, "max_streams": 1}
    settings["limits_store"] = redis_server
    async with limiting(**settings) as one, limiting(**settings) as other:
        await one.admit(APP, 20)
        assert "characters" in str(await refusal(other, num_characters=55))
        await other.admit(APP, 20)
        error = await refusal(one, num_characters=0)
        assert "requests" in str(error)
        assert 0 < error.retry_after_s <= 30
        async with one.stream(APP):
            with pytest.raises(RateLimited):
                await other.stream(APP).__aenter__()
        async with other.stream(APP):
            pass
    for name in redis_client.scan_iter():
        assert b"qwen3_tts:" in name
        assert 0 < redis_client.ttl(name) <= 60


async def test_the_streams_of_a_gateway_that_died_run_out(redis_client, redis_server):
    now = redis_client.time()[0]
    redis_client.zadd(STREAMS, {"of a gateway that died": now - 1, "of one that lives": now + 1000})
    async with limiting(max_streams=2, limits_store=redis_server) as limits:
        async with limits.stream(APP):
            assert redis_client.zscore(STREAMS, "of one that lives")
            assert redis_client.zcard(STREAMS) == 2
            assert 0 < redis_client.ttl(STREAMS) <= LEASE_S
            with pytest.raises(RateLimited):
                await limits.stream(APP).__aenter__()
        assert redis_client.zcard(STREAMS) == 1


async def test_a_stream_that_goes_on_is_renewed(redis_client, redis_server):
    naps, wake = asyncio.Queue(), asyncio.Event()

    async def sleep(duration_s: float) -> None:
        naps.put_nowait(duration_s)
        await wake.wait()
        wake.clear()

    async with limiting(limits_store=redis_server) as limits:
        streams = LeasedStreams(limits._redis, Outage(time.monotonic), sleep)
        async with streams.one_of("app", most=1):
            for _ in range(2):
                assert await naps.get() < LEASE_S / 2
                redis_client.delete(STREAMS)
                wake.set()
            await naps.get()
            assert redis_client.zcard(STREAMS) == 1
        assert redis_client.zcard(STREAMS) == 0


async def test_a_redis_that_is_away_limits_nobody_and_is_mentioned_once_a_minute(clock, caplog):
    url = f"redis://:secret@127.0.0.1:{free_ports()[0]}/0"
    limited = {"requests_per_minute": 1, "characters_per_minute": 10, "max_streams": 1}
    async with limiting(clock, limits_store=url, **limited) as limits:
        for minute in range(2):
            for _ in range(7):
                await limits.admit(APP, 5)
                async with limits.stream(APP), limits.stream(APP):
                    clock.now_s += 8
            assert len(caplog.records) == 1 + minute
            clock.now_s += 60
        with pytest.raises(InvalidInput):  # for which nobody need be asked
            await limits.admit(APP, 11)
    for record in caplog.records:
        assert record.levelname == "WARNING"
        assert "LIMITS_STORE fails, so nobody is limited meanwhile: Error" in record.message
        assert "secret" not in record.message


async def test_a_redis_that_is_silent_keeps_one_listener_waiting_and_not_the_next(clock, monkeypatch):
    monkeypatch.setattr(limits_module, "STORE_PATIENCE_S", 0.05)
    connections = 0

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await reader.read(-1)
        writer.close()

    server = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    limited = {"requests_per_minute": 1, "characters_per_minute": 10, "max_streams": 1}
    async with server, limiting(clock, limits_store=f"redis://127.0.0.1:{port}", **limited) as limits:
        for _ in range(3):
            await limits.admit(APP, 5)
            async with limits.stream(APP), limits.stream(APP):
                pass
        assert connections == 1


async def test_a_redis_that_comes_back_limits_again(clock, tmp_path):
    port = free_ports()[0]
    async with limiting(clock, requests_per_minute=1, limits_store=f"redis://127.0.0.1:{port}") as limits:
        assert await admitted(limits) == 100
        with running_redis(tmp_path, port):
            clock.now_s += limits_module.ASK_AGAIN_S
            assert await admitted(limits) == 1
            await limits.close()


@pytest.mark.parametrize("url", ["localhost:6379", "http://localhost", "redis://:se/cret@host:6379"])
def test_a_store_that_is_no_redis_is_refused_at_the_start_without_its_password(url):
    with pytest.raises(ValueError, match=r"^LIMITS_STORE is no URL of a Redis") as error:
        Limits(Settings(_env_file=None, limits_store=url))
    assert "se" not in str(error.value).split()
