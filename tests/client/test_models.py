"""Models that come and go while the server runs."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from fakes.triton_server import says, triton
from qwen3_tts_client import (
    ClonedVoice,
    EngineFailed,
    InvalidRequest,
    ModelState,
    ServerUnavailable,
    SpeechClient,
)
from real_server import wait_until

BASE, CUSTOM_VOICE = "qwen3_tts_base", "qwen3_tts_custom_voice"
GRANDPA = ClonedVoice(b"RIFF grandpa", "Once upon a time.")


async def test_the_repository_tells_what_is_loaded_and_what_is_not(meeting):
    async with meeting(models=[CUSTOM_VOICE], repository=[BASE]) as (_, tts):
        assert await tts.models.list() == [
            ModelState(CUSTOM_VOICE, "1", "READY", ""),
            ModelState(BASE, "1", "UNAVAILABLE", ""),
        ]
        assert await tts.models.ready(CUSTOM_VOICE)
        assert not await tts.models.ready(BASE)


async def test_a_model_is_loaded_into_a_server_that_started_empty(meeting):
    async with meeting(models=[], repository=[CUSTOM_VOICE]) as (server, tts):
        assert (await tts.models.load(CUSTOM_VOICE)).is_ready
        assert server.history == [f"load {CUSTOM_VOICE}"]
        assert (await tts.synthesize("Hi.")).num_frames == 1


async def test_a_reload_never_holds_two_copies(meeting):
    async with meeting() as (server, tts):
        await tts.models.load(BASE)
        assert server.history == [f"unload {BASE}", f"load {BASE}"]
        assert server.most_copies == 1


async def test_another_checkpoint_goes_beside_the_configured_one(meeting):
    async with meeting() as (server, tts):
        await tts.models.load(BASE, checkpoint="Qwen/Qwen3-TTS-12Hz-0.6B-Base")
        assert server.history == [f"unload {BASE}", f"load {BASE}"]
        assert server.most_copies == 1
        config = json.loads(server.configs[BASE])
    assert config["name"] == BASE
    assert config["max_batch_size"] == 16
    assert config["model_transaction_policy"] == {"decoupled": True}
    assert config["parameters"] == {
        "checkpoint": {"string_value": "../../checkpoints/tiny"},
        "loaded_checkpoint": {"string_value": "Qwen/Qwen3-TTS-12Hz-0.6B-Base"},
        "slots": {"string_value": "16"},
    }


async def test_a_model_that_is_not_loaded_is_loaded_first_to_tell_its_configuration(meeting):
    async with meeting(models=[], repository=[BASE]) as (server, tts):
        await tts.models.load(BASE, checkpoint="/models/grandpa")
        assert server.history == [f"load {BASE}", f"unload {BASE}", f"load {BASE}"]
        assert server.most_copies == 1


async def test_a_model_without_a_checkpoint_is_left_as_it_is(meeting):
    async with meeting() as (server, tts):
        with pytest.raises(InvalidRequest, match="voices has no checkpoint to swap"):
            await tts.models.load("voices", checkpoint="/models/grandpa")
        assert server.history == []


async def test_a_failed_load_says_why_and_leaves_the_others_serving(meeting):
    broken = {BASE: "ConfigError: there is no checkpoint at /models/grandpa"}
    async with meeting(broken=broken) as (_, tts):
        with pytest.raises(EngineFailed, match="there is no checkpoint at /models/grandpa"):
            await tts.models.load(BASE, checkpoint="/models/grandpa")
        states = {model.name: model for model in await tts.models.list()}
        assert states[BASE].reason == broken[BASE]
        assert (await tts.synthesize("Hi.")).num_frames == 1


async def test_unload_waits_until_the_model_is_gone(meeting):
    async with meeting() as (server, tts):
        await tts.models.unload(BASE)
        assert server.unloading == {}
        await tts.models.unload(BASE)
        assert server.history == [f"unload {BASE}"]
        with pytest.raises(ServerUnavailable, match="unknown model"):
            await tts.synthesize("Hi.", GRANDPA)


async def test_a_model_that_does_not_go_is_not_waited_for_forever(meeting):
    async with meeting(num_looks=10**9) as (server, tts):
        with pytest.raises(ServerUnavailable, match=r"qwen3_tts_base is still UNLOADING after 0\.1 s"):
            await tts.models.load(BASE, timeout_s=0.1)
        assert server.history == [f"unload {BASE}"]


@contextmanager
def loaded_by_another(server, model):
    """A load that goes on until it has been looked at."""
    gate = server.gates[model] = threading.Event()

    def wait_for_a_look():
        looks = server.looks[model]
        wait_until(lambda: server.looks[model] > looks, "it is looked at")
        gate.set()

    with SpeechClient(server.url) as other, ThreadPoolExecutor() as threads:
        load = threads.submit(other.models.load, model)
        wait_until(lambda: model in server.loading, "it is being loaded")
        looked_at = threads.submit(wait_for_a_look)
        yield
        looked_at.result()
        load.result()


async def test_what_is_loaded_is_left_as_it_is(meeting):
    async with meeting() as (server, tts):
        assert (await tts.models.ensure_loaded(BASE)).is_ready
        assert server.history == []


async def test_what_is_not_loaded_is_loaded_without_an_unload(meeting):
    async with meeting(models=[], repository=[BASE], reasons={BASE: "unloaded"}) as (server, tts):
        assert (await tts.models.ensure_loaded(BASE)).is_ready
        assert server.history == [f"load {BASE}"]


async def test_what_is_going_is_waited_for_and_loaded_anew(meeting):
    async with meeting(models=[], repository=[BASE], unloading={BASE: 2}) as (server, tts):
        assert (await tts.models.ensure_loaded(BASE)).is_ready
        assert server.history == [f"load {BASE}"]
        assert server.most_copies == 1


async def test_a_load_that_somebody_else_began_is_waited_for(meeting):
    async with meeting(models=[], repository=[BASE]) as (server, tts):
        with loaded_by_another(server, BASE):
            assert (await tts.models.ensure_loaded(BASE)).is_ready
        assert server.history == [f"load {BASE}"]


async def test_a_load_that_somebody_else_failed_at_is_tried_again(meeting):
    async with meeting(models=[], repository=[BASE], reasons={BASE: "out of memory"}) as (_, tts):
        assert (await tts.models.ensure_loaded(BASE)).is_ready


async def test_a_name_that_is_not_in_the_repository_gets_those_that_are(meeting):
    async with meeting(models=[CUSTOM_VOICE], repository=[BASE]) as (server, tts):
        for change in (tts.models.load, tts.models.unload):
            with pytest.raises(InvalidRequest, match=f"no model 'bass'; it has {CUSTOM_VOICE}, {BASE}"):
                await change("bass")
        assert server.history == []


async def test_other_weights_have_other_speakers_and_hear_a_recording_anew(meeting):
    async with meeting() as (server, tts):
        for _ in range(2):
            await tts.synthesize("Hi.", "ryan")
            await tts.synthesize("Hi.", GRANDPA)
            await tts.models.load(BASE)
        assert len(server.questions) == 4


def test_a_dead_port_is_an_error_here_too(dead_url):
    with SpeechClient(dead_url) as tts, pytest.raises(ServerUnavailable, match=dead_url):
        tts.models.list()


def test_a_key_that_may_not_see_the_repository_is_told_so():
    with (
        triton(says(1), api_key="s3cr3t") as server,
        SpeechClient(server.url) as tts,
        pytest.raises(InvalidRequest, match="protocol is restricted"),
    ):
        tts.models.load(BASE)
