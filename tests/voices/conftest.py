"""Voices to save, and places to save them in."""

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwen3_tts_engine.launch.ports import free_ports
from qwen3_tts_engine.request import VoicePrompt
from qwen3_tts_engine.voices.store import Voice, VoiceStore, open_store
from redis_server import running_redis

HIDDEN_SIZE = 64  # of the tiny checkpoints
FRAMES = 25
MODEL = f"qwen3_tts 1b7 base ({HIDDEN_SIZE} values) config 0123456789ab"


@pytest.fixture(scope="session")
def make_prompt() -> Callable[..., VoicePrompt]:
    """`make_prompt(seed, "what is said")`: the prompt of a recording; x-vector only without words."""

    def make(seed: int = 0, ref_text: str = "", size: int = HIDDEN_SIZE) -> VoicePrompt:
        dice = np.random.default_rng(seed)
        codes = dice.integers(0, 2048, (FRAMES, 16)) if ref_text else None
        return VoicePrompt(dice.standard_normal(size, np.float32), codes, ref_text)

    return make


@pytest.fixture(scope="session")
def make_voice(make_prompt: Callable[..., VoicePrompt]) -> Callable[..., Voice]:
    """`make_voice("grandpa", seed=3, ref_text="what is said", metadata={…})`."""

    def make(name: str = "grandpa", metadata: dict[str, Any] | None = None, **prompt: Any) -> Voice:
        created_at = "2025-03-04T05:06:07.890+00:00"
        return Voice(name, make_prompt(**prompt), created_at, MODEL, metadata or {})

    return make


@pytest.fixture(scope="session")
def assert_same_voice() -> Callable[[Voice, Voice], None]:
    """Everything that was saved, to the last bit."""

    def check(one: Voice, other: Voice) -> None:
        assert one.summary == other.summary
        for ours, theirs in (
            (one.prompt.speaker_embedding, other.prompt.speaker_embedding),
            (one.prompt.ref_codes, other.prompt.ref_codes),
        ):
            assert (ours is None) == (theirs is None)
            if ours is not None:
                assert ours.dtype == theirs.dtype
                np.testing.assert_array_equal(ours, theirs)

    return check


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a Redis of its own."""
    with running_redis(tmp_path_factory.mktemp("redis"), free_ports()[0]) as url:
        yield url


@pytest.fixture
def redis_url(redis_server: str) -> Iterator[str]:
    """A Redis nobody has saved anything in."""
    import redis

    yield redis_server
    with redis.Redis.from_url(redis_server) as client:
        client.flushall()


@pytest.fixture(scope="session")
def s3_bucket() -> Iterator[str]:
    """The URL of a bucket behind S3's own protocol, by moto; the environment says where it is."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "a-key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        boto3.client("s3").create_bucket(Bucket="voices")
        yield "s3://voices"
    server.stop()


@pytest.fixture(params=["directory", "redis", "fsspec", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of an empty store, of each kind."""
    if request.param == "redis":
        return request.getfixturevalue("redis_url")
    if request.param == "s3":
        return f"{request.getfixturevalue('s3_bucket')}/{uuid.uuid4().hex}"
    return {
        "directory": f"file://{tmp_path}/my%20voices",
        "fsspec": f"memory://voices-{uuid.uuid4().hex}/below",
    }[request.param]


@pytest.fixture
def store(url: str) -> VoiceStore:
    return open_store(url)
