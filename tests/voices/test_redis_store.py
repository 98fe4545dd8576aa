"""A Redis that is away, full, or damaged."""

import pytest
import redis

from qwen3_tts_engine.errors import EngineFailed
from qwen3_tts_engine.launch.ports import free_ports
from qwen3_tts_engine.voices.redis_store import ENTRIES, OBJECTS
from qwen3_tts_engine.voices.store import open_store


@pytest.fixture
def client(redis_url):
    with redis.Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def store(redis_url):
    return open_store(redis_url)


def test_a_redis_that_is_away_says_so_and_keeps_its_password_to_itself(make_voice):
    store = open_store(f"redis://:secret@127.0.0.1:{free_ports()[0]}/0")
    for ask in (store.list, lambda: store.get("grandpa"), lambda: store.save(make_voice())):
        with pytest.raises(
            EngineFailed, match=r"^the voice store cannot be used: .*Connection refused"
        ) as error:
            ask()
        assert "secret" not in str(error.value)


def test_a_redis_that_is_full_keeps_what_was_saved(client, store, make_voice, assert_same_voice):
    store.save(old := make_voice(seed=1))
    client.config_set("maxmemory", 1)
    try:
        with pytest.raises(EngineFailed, match=r"cannot be used: .*maxmemory"):
            store.save(make_voice(seed=2))
    finally:
        client.config_set("maxmemory", 0)
    assert_same_voice(store.get("grandpa"), old)


def test_voices_share_a_redis_with_others(client, store, make_voice):
    client.set("grandpa", "somebody else's")
    store.save(make_voice())
    assert len(client.keys()) == 3
    assert all(key.startswith(b"{qwen3_tts:voices}:") for key in set(client.keys()) - {b"grandpa"})


@pytest.mark.parametrize("hash_name", [OBJECTS, ENTRIES])
@pytest.mark.parametrize("contents", [b"", b"noise"])
def test_a_damaged_voice_is_told_from_a_sound_one(client, store, make_voice, hash_name, contents):
    for name in ("grandma", "grandpa"):
        store.save(make_voice(name))
    client.hset(hash_name, "grandpa", contents)
    with pytest.raises(EngineFailed, match="holds voice 'grandpa' damaged"):
        store.get("grandpa")
    assert store.get("grandma").name == "grandma"
    assert "grandma" in [summary.name for summary in store.list()]
    store.save(make_voice("grandpa"))
    assert store.get("grandpa").name == "grandpa"


def test_an_object_that_was_lost_is_damage(client, store, make_voice):
    store.save(make_voice())
    client.hdel(OBJECTS, "grandpa")
    with pytest.raises(EngineFailed, match="holds voice 'grandpa' damaged: its object is missing"):
        store.get("grandpa")
